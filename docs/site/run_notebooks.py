"""Runs the notebooks and keeps what they print and draw, for the repository and the site.

python docs/site/run_notebooks.py

What libraries write to standard error as they start is left out; pictures get 128 colours.
"""

import base64
import io
import json
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

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
                    if picture := shown.get("data", {}).get("image/png"):
                        # Without the text beside it, which has an address in memory.
                        shown.data = {"image/png": smaller(picture)}
        book.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
        text = json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True)
        path.write_text(text + "\n", encoding="utf-8")
        print(f"{path.name}: {len(text) / 1e3:.0f} kB")


def smaller(picture):
    """A PNG in base64 with 128 colours, of which the repository grows less."""
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    kept = io.BytesIO()
    image.convert("RGB").quantize(128).save(kept, "PNG", optimize=True)
    return base64.b64encode(kept.getvalue()).decode()


if __name__ == "__main__":
    main()
