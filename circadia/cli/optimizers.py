"""`circadia optimizers`: the rules by which slow weights are written."""


def optimizers() -> None:
    """List the optimizers that `circadia.optim.build` knows, with their equations."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    import circadia

    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, info in circadia.optim.OPTIMIZERS.items():
        # Text objects, because equations contain brackets that rich would read as markup.
        table.add_row(Text(name, "cyan"), Text.assemble(info.equation, "\n", (info.summary, "dim")))
    Console().print(table)
