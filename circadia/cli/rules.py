"""`circadia rules`: the rules by which a memory is written."""


def rules() -> None:
    """List the rules by which a memory can be written, with their equations."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    import circadia

    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    family = None
    for name, rule in circadia.memory.RULES.items():
        # Text objects, because equations contain brackets that rich would read as markup.
        if rule.family != family:
            family = rule.family
            table.add_row(Text(family, "bold"), "")
        table.add_row(Text(f"  {name}", "cyan"), Text.assemble(rule.equation, "\n", (rule.summary, "dim")))
    Console().print(table)
