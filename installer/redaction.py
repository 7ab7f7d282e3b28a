"""What a secret is, by its key and by its looks, and how texts and documents get rid of it.

Three sieves. What is structured is blanked by the names of its keys. What is known to be secret is
cut out of every text, in each form in which programs write it. What looks like a login, a token or
a private key goes as well, whoever made it.
"""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus, unquote

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

_SHORTEST = 6
"""Shorter secrets are cut out as whole words only: within others they are chance."""
_DEEPEST = 4
"""Layers of JSON in JSON: a log of a log of an answer."""
_BETWEEN = "\0"
"""Stands in no secret."""
_LONG_LINE = 16
_BLANK = "***"
_IN_URL = re.compile(r"(?<=://)[^/?#\s]+(?=@)")
SECRET_KEY = re.compile(
    r"passw|passphrase|pwd|secret|token|credential|htpasswd|authorization|.key\Z|key-data\Z",
    re.IGNORECASE,
)
_NAMED = re.compile(r"\Aexisting|(name|ref|file|seconds|path)\Z", re.IGNORECASE)
"""Keys beside a secret that say what it is called, where it is or how long it lives."""
_DROPPED = ("managedFields", "kubectl.kubernetes.io/last-applied-configuration")
"""Repetitions of an object inside of it, in other forms."""
_QUOTE = r"(?:\\*[\"'])?"
_IS = rf"{_QUOTE}[ \t]*[=:][ \t]*\[?[ \t]*{_QUOTE}"
_CALLED = r"(?:passw(?:or)?d|passphrase|pwd|secret|token|api_?key|access_?key)"
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_PATTERNS = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"(?<=://)[^/?#\s\"']{0,256}:[^/?#\s\"']{0,256}(?=@)", _BLANK),
        (rf"(authorization{_IS}(?:\w+[ \t]+)?)[^\s\"',\\]+", r"\1***"),
        (r"\b((?:basic|bearer)[ \t]+)[a-z0-9+/_.=~-]{16,}", r"\1***"),
        (rf"\b(cookie{_IS})[^\r\n\"'\\]+", r"\1***"),
        (r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*", _BLANK),
        (rf"({_CALLED}{_IS})(?!(?:true|false|null)\b)[^\s\"'\\,;&{{}}\[\]]+", r"\1***"),
    )
)
"""What is a secret by its looks, whoever made it."""


def redact(text: str, secrets: Collection[str]) -> str:
    """Put ``***`` for each secret, plain or in the forms in which Kubernetes and Go print it."""
    forms = set()
    for secret in filter(None, secrets):
        forms |= {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
        forms.add(base64.b64encode(secret.encode()).decode())
        # A key in PEM is printed line by line, indented.
        forms |= {line for line in secret.splitlines() if len(line) >= _LONG_LINE}
    # The longest first: a secret may be part of another one.
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "***")
    return text


def secret_texts(values: Any, known: Iterable[str] = ()) -> tuple[str, ...]:
    """What people must not be shown: what is known as such, and what ``values`` call a secret."""
    plain = (*known, *_called_secret(values))
    # Charts put them into URLs as well.
    forms = (form for text in plain for form in (text, quote(text, safe=""), quote_plus(text)))
    return tuple(dict.fromkeys(forms))


def _called_secret(values: Any, *, secret: bool = False) -> Iterator[str]:
    """Texts under a key that speaks of a secret, and logins in URLs wherever they are."""
    if isinstance(values, dict):
        for key, value in values.items():
            # The value of an environment variable is called as the variable is.
            called = str(values.get("name", "")) if key == "value" else key
            is_secret = bool(SECRET_KEY.search(called)) and not _NAMED.search(called)
            yield from _called_secret(value, secret=is_secret)
    elif isinstance(values, list):
        for value in values:
            yield from _called_secret(value, secret=secret)
    elif isinstance(values, str | int | float) and not isinstance(values, bool):
        text = str(values)
        if secret and len(text) >= _SHORTEST:
            yield text
        for login in _IN_URL.findall(text):
            yield f"//{login}@"
            password = unquote(login.partition(":")[2])
            if len(password) >= _SHORTEST:
                yield password


class Redaction:
    """Cuts known secrets, and what looks like one, out of texts and documents."""

    def __init__(self, secrets: Iterable[str]) -> None:
        words = {word for word in secrets if word}
        long = [word for word in words if len(word) >= _SHORTEST]
        self._texts = tuple(dict.fromkeys(form for word in long for form in _forms(word)))
        short = "|".join(map(re.escape, sorted(words.difference(long), key=len, reverse=True)))
        self._short = re.compile(rf"(?<!\w)(?:{short})(?!\w)" if short else r"(?!)")

    def __call__(self, text: str) -> str:
        """The text without them."""
        return self._by_looks(self._known(_without_keys(text)))

    def document(self, value: Any) -> Any:
        """The same with every text in it cleaned, before JSON or YAML quote it in their way."""
        texts = list(dict.fromkeys(["", *_strings(value)]))
        # All at once: to search for each form in each text would take long.
        known = self._known(_BETWEEN.join(map(_without_keys, texts))).split(_BETWEEN)
        cleaned = dict(zip(texts, map(self._by_looks, known), strict=True))
        return _replaced(value, cleaned)

    def _known(self, text: str) -> str:
        return self._short.sub(_BLANK, redact(text, self._texts))

    @staticmethod
    def _by_looks(text: str) -> str:
        # Last, so that no pattern leaves half of a known one.
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text


def _without_keys(text: str) -> str:
    # First: of a known one the line that says where a key begins is cut out wherever it is.
    return _PRIVATE_KEY.sub(_BLANK, text)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value.replace(_BETWEEN, "")
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from _strings(str(key))
            yield from _strings(child)
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _strings(child)


def _replaced(value: Any, cleaned: dict[str, str]) -> Any:
    if isinstance(value, str):
        return cleaned[value.replace(_BETWEEN, "")]
    if isinstance(value, dict):
        return {_replaced(str(k), cleaned): _replaced(v, cleaned) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(child, cleaned) for child in value]
    return value


def _forms(word: str) -> Iterator[str]:
    """The word as JSON, and JSON in JSON, has it, and the middle of what Base64 makes of it."""
    for ascii_only in (True, False):
        for escaped in ("", "<>&"):  # the second by Go's encoding/json
            form = word
            for _ in range(_DEEPEST):
                yield form
                form = json.dumps(form, ensure_ascii=ascii_only)[1:-1]
                form = "".join(f"\\u{ord(c):04x}" if c in escaped else c for c in form)
    data = word.encode()
    for lead in range(3):
        # With anything before and after, these characters of Base64 are the same.
        encoded = base64.b64encode(bytes(lead) + data).decode()
        inner = encoded[(8 * lead + 5) // 6 : 8 * (lead + len(data)) // 6]
        yield inner
        yield inner.replace("+", "-").replace("/", "_")


def blanked(value: Any, *, in_secret: bool = False) -> Any:
    """The same without what Secrets hold and without what a key calls a secret."""
    if isinstance(value, list):
        return [blanked(item, in_secret=in_secret) for item in value]
    if not isinstance(value, dict):
        return value
    in_secret = in_secret or str(value.get("kind", "")) in ("Secret", "SecretList")
    result: dict[str, Any] = {}
    for key, child in value.items():
        # The value of an environment variable is called as the variable is.
        called = str(value.get("name", "")) if key == "value" else str(key)
        if key in _DROPPED:
            continue
        if in_secret and key in ("data", "stringData"):
            result[key] = dict.fromkeys(child, _BLANK) if isinstance(child, dict) else _BLANK
        elif SECRET_KEY.search(called) and not _NAMED.search(called):
            result[key] = _leafless(child)
        else:
            result[key] = blanked(child, in_secret=in_secret)
    return result


def _leafless(value: Any) -> Any:
    """Blank texts and numbers; below a map its own keys decide."""
    if isinstance(value, dict):
        return blanked(value)
    if isinstance(value, list):
        return [_leafless(item) for item in value]
    return _BLANK if value not in ("", None) and not isinstance(value, bool) else value
