"""Coverage-guided fuzzing of everything that reads what others wrote: ``make fuzz``.

``targets`` has one function for each reader, and what it starts from. libFuzzer (through atheris)
changes those bytes and looks which of them reach new code. Whatever is found is kept below
``findings`` and read by each run of the attack tests, which need no atheris.
"""
