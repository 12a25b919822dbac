"""Small things that several commands print alike."""


def columns(rows: list[list[str]]) -> list[str]:
    """Rows as aligned columns, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    numeric = [
        all(_is_number(row[column]) for row in rows[1:]) and len(rows) > 1 for column in range(len(rows[0]))
    ]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "").replace("%", "").isdigit() or not cell


def duration(ms: float) -> str:
    """A time as a person says it: 250 ms, 3.4 s, 12 min, 5.1 h, 3.0 d."""
    if ms < 1_000:
        return f"{ms:.0f} ms"
    for limit_ms, unit_ms, unit in (
        (120_000, 1_000, "s"),
        (7_200_000, 60_000, "min"),
        (172_800_000, 3_600_000, "h"),
    ):
        if ms < limit_ms:
            return f"{ms / unit_ms:.1f} {unit}"
    return f"{ms / 86_400_000:.1f} d"


def version_text(version: int) -> str:
    """epoch.count"""
    return f"{version >> 40}.{version & (1 << 40) - 1}"
