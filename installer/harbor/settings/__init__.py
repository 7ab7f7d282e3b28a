"""What is set inside of Harbor: compared with site.yaml, shown, made so, read again."""
