"""`circadia rules`: the rules by which a memory is written."""


def rules() -> None:
    """List the rules by which a memory can be written, with their equations."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    import circadia

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("rule", "family", "equation", "what it does"):
        table.add_column(column)
    for name, rule in circadia.memory.RULES.items():
        # Text, because equations contain brackets that rich would read as markup.
        table.add_row(Text(name, style="bold"), Text(rule.family), Text(rule.equation), Text(rule.summary))
    Console().print(table)
