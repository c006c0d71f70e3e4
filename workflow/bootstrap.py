"""Make the environment: check the machine, create .venv, install what requirements.lock pins.

Runs with the system's Python before anything is installed, so it uses the standard library only.
Whatever is missing is said in one line, with the command that mends it.
"""

from __future__ import annotations

import argparse
import ctypes.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED_GB = 10  # 7.7 are installed, most of it torch's CUDA libraries; pip needs room beside
LIBUSB = "sudo apt-get install -y libusb-1.0-0, dnf install libusbx, brew or conda install libusb"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def stop(message: str) -> None:
    """Leave with one line on standard error."""
    raise SystemExit(f"g2sf-book: {message}")


def apt_install(package: str) -> bool:
    """Install a Debian package where that needs no question (root), and say whether it worked."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    print(f"Installing {package} with apt-get", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["install", "-y", "-qq", "--no-install-recommends", package]
    return all(
        subprocess.run(["apt-get", *c], env=environment, stdout=subprocess.DEVNULL).returncode == 0
        for c in (["update", "-qq"], install)
    )


def has_libusb() -> bool:
    """Say whether the loader, or an active conda environment, has libusb-1.0."""
    prefix = os.environ.get("CONDA_PREFIX")
    in_conda = prefix is not None and any(Path(prefix, "lib").glob("libusb-1.0*"))
    return bool(ctypes.util.find_library("usb-1.0")) or in_conda


def check_machine() -> None:
    """Stop where Python is too old, has no venv, or Open3D's libusb-1.0 cannot be had."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this file is run by whatever is there
        found = ".".join(map(str, sys.version_info[:3]))
        stop(f"Python 3.11 or newer is needed, {sys.executable} is {found}; try `make PYTHON=...`")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        stop(f"no venv module; `sudo apt-get install -y python3.{sys.version_info[1]}-venv`")
    if not (has_libusb() or (apt_install("libusb-1.0-0") and has_libusb())):
        stop(f"Open3D needs the system library libusb-1.0: {LIBUSB}")


def find_browser() -> str | None:
    """Return the path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


def run_pip(python: Path, *arguments: str) -> None:
    """Run pip, and turn its failure into one line below what it said."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        stop(
            f"pip failed (see above): {' '.join(command)}; it needs PyPI, or a mirror in "
            f"PIP_INDEX_URL, and {NEEDED_GB} GB of disk"
        )


def install(folder: Path, faiss: str) -> None:
    """Create the environment and install the locked versions, then this package.

    Args:
        folder: where the virtual environment lies.
        faiss: "cpu" or "gpu"; the other one's package is removed, both own the same module.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        free_gb = shutil.disk_usage(folder.parent).free / 1e9
        if free_gb < NEEDED_GB:
            stop(f"{folder.parent} has {free_gb:.1f} GB free, .venv needs {NEEDED_GB} GB")
        print(f"Creating {folder} with {sys.executable}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    for stamp in folder.glob("installed-*"):
        stamp.unlink()
    lock = ROOT / "requirements.lock"
    print(f"Installing {lock.name} (minutes, the first time)", flush=True)
    quick = ("install", "--quiet", "--retries", "2", "--progress-bar", "off")
    other = "gpu" if faiss == "cpu" else "cpu"
    run_pip(python, "uninstall", "--quiet", "--yes", f"faiss-{other}")
    if faiss == "gpu":  # the same versions, but for faiss
        lines = [line for line in lock.read_text().splitlines() if not line.startswith("faiss-cpu")]
        lock = folder / "requirements-gpu.lock"
        lock.write_text("\n".join(lines) + "\n")
        run_pip(python, *quick, "-c", str(lock), "-e", ".[gpu,dev]")
    else:
        run_pip(python, *quick, "-r", str(lock))
        run_pip(python, *quick, "--no-deps", "-e", ".")
    (folder / f"installed-{faiss}").touch()


def write_lock(python: Path) -> None:
    """Write requirements.lock from what is installed, Linux-only packages marked as such."""
    command = [str(python), "-m", "pip", "freeze", "--exclude", "g2sf-lib"]
    frozen = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    lines = [
        "# Every version as tested with Python 3.11; `make lock` writes this file. Lines for Linux",
        "# are what torch's wheels need there; elsewhere pip leaves them out.",
    ]
    for line in frozen.splitlines():
        is_linux_only = line.startswith(("nvidia-", "cuda-", "triton=="))
        lines.append(line + ' ; sys_platform == "linux"' * is_linux_only)
    (ROOT / "requirements.lock").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Run from the Makefile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--faiss", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--browser", action="store_true", help="only see to a Chromium")
    parser.add_argument("--lock", action="store_true", help="only write requirements.lock")
    arguments = parser.parse_args()
    if arguments.lock:
        write_lock(arguments.venv / "bin" / "python")
    elif arguments.browser:
        if not (find_browser() or (apt_install("chromium") and find_browser())):
            print("No Chromium: the test that opens the book's pages will be skipped", flush=True)
    else:
        check_machine()
        install(arguments.venv.absolute(), arguments.faiss)


if __name__ == "__main__":
    main()
