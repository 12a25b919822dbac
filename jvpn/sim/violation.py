"""What must never happen, and did."""


class Violation(Exception):
    """`code` is stable, the text is for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text
