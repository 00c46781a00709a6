"""Runs the notebooks and keeps what they print and draw, for the repository and the site.

python docs/site/run_notebooks.py

What a library writes to standard error as it starts is left out, and so is who ran it when.
"""

import json
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def main():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for path in sorted(FOLDER.glob("*.ipynb")):
        book = nbformat.read(path, as_version=4)
        NotebookClient(book, timeout=600, record_timing=False).execute()
        for cell in book.cells:
            if cell.cell_type == "code":
                cell.outputs = [shown for shown in cell.outputs if shown.get("name") != "stderr"]
                for shown in cell.outputs:
                    if "image/png" in (data := shown.get("data", {})):
                        data.pop("text/plain", None)  # with an address in memory
                        data.pop("image/jpeg", None)
        book.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
        text = json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True)
        path.write_text(text + "\n", encoding="utf-8")
        print(f"{path.name}: {len(text) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
