"""The page that says how slimkit works: its table of operations is that of the code."""

from pathlib import Path

from slimkit.core.pruning.channels.rules import RULES, opaque
from slimkit.core.quantization.lowering.functions import READERS
from slimkit.core.quantization.lowering.traced import LAYERS
from slimkit.standalone.model import OPERATIONS

PAGE = Path(__file__).parents[1] / "docs" / "how-slimkit-works.md"


def table() -> str:
    rows = ["| operation | pruning | int8 |", "| --- | --- | --- |"]
    for name in OPERATIONS:
        pruning = "stay" if RULES[name] is opaque else "cut"
        int8 = name in READERS or name in LAYERS or name in ("arange", "full")  # computed for the size of the images
        rows.append(f"| {name} | {pruning} | {'yes' if int8 else 'refused'} |")
    return "\n".join(rows) + "\n"


def test_the_table_of_operations_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8").endswith(table()), f"replace the table's rows with:\n{table()}"


def test_the_page_names_files_that_are_there() -> None:
    root = PAGE.parents[1] / "slimkit"
    text = PAGE.read_text(encoding="utf-8")
    named = [part for part in text.split("`")[1::2] if part.endswith(".py") or part.endswith("/")]
    known = {path.name for path in root.rglob("*.py")} | {f"{path.name}/" for path in root.rglob("*") if path.is_dir()}
    known |= {"slimkit/"} | {path.name for path in (PAGE.parents[1] / "tests").glob("*.py")}
    missing = [name for name in named if f"{Path(name).name}{'/' * name.endswith('/')}" not in known]
    assert not missing
