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
LIBUSB_COMMANDS = {
    "apt-get": "sudo apt-get install -y libusb-1.0-0",
    "dnf": "sudo dnf install -y libusbx",
    "brew": "brew install libusb",
    "conda": "conda install -y -c conda-forge libusb",
}
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NETWORK_SIGNS = (
    "name resolution",
    "NewConnectionError",
    "Network is unreachable",
    "Max retries exceeded",
    "ConnectTimeout",
    "ReadTimeout",
    "from versions: none",
)


def stop(message: str) -> None:
    """Leave with one line on standard error."""
    raise SystemExit(f"g2sf-book: {message}")


def can_use_apt() -> bool:
    """Say whether packages can be installed without asking: root, and apt-get is there."""
    return hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get") is not None


def apt_install(package: str) -> bool:
    """Install a Debian package and say whether that worked."""
    print(f"Installing {package} with apt-get", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["install", "-y", "-qq", "--no-install-recommends", package]
    for command in (["update", "-qq"], install):
        done = subprocess.run(["apt-get", *command], env=environment, stdout=subprocess.DEVNULL)
        if done.returncode != 0:
            return False
    return True


def check_python() -> None:
    """Stop where this Python is too old or cannot make virtual environments."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):  # noqa: UP036 - this file is run by whatever is there
        stop(f"Python 3.11 or newer is needed, {sys.executable} is {found}; try `make PYTHON=...`")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        stop(
            f"Python {found} has no venv module; Debian and Ubuntu have it in "
            f"`sudo apt-get install -y python3.{sys.version_info[1]}-venv`"
        )


def check_disk(folder: Path, needed_gb: float) -> None:
    """Stop where the disk that holds `folder` has too little room."""
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < needed_gb:
        stop(f"{folder} has {free_gb:.1f} GB free, the environment needs {needed_gb:.0f} GB")


def has_libusb() -> bool:
    """Say whether the loader, or an active conda environment, has libusb-1.0."""
    if ctypes.util.find_library("usb-1.0"):
        return True
    prefix = os.environ.get("CONDA_PREFIX")
    return prefix is not None and any(Path(prefix, "lib").glob("libusb-1.0*"))


def check_libusb() -> None:
    """Open3D loads libusb-1.0, which no wheel brings: install it, or say how."""
    if has_libusb():
        return
    if can_use_apt() and apt_install("libusb-1.0-0") and has_libusb():
        return
    found = [text for tool, text in LIBUSB_COMMANDS.items() if shutil.which(tool)]
    commands = " or ".join(found or LIBUSB_COMMANDS.values())
    stop(f"Open3D needs the system library libusb-1.0: {commands}")


def find_browser() -> str | None:
    """Return the path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


def ensure_browser() -> None:
    """Install Chromium where that can be done without asking; the book's test needs it."""
    if find_browser() or (can_use_apt() and apt_install("chromium") and find_browser()):
        return
    print("No Chromium: the test that opens the book's pages will be skipped", flush=True)


def run_pip(python: Path, *arguments: str) -> None:
    """Run pip, show what it says, and turn its failure into one line."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    said = []
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as pip:
        for line in pip.stdout:
            said.append(line)
            if not line.startswith("WARNING: Location"):  # local index folders that do not exist
                print(line, end="", flush=True)
    if pip.returncode == 0:
        return
    text = "".join(said)
    if "No space left" in text or "Errno 28" in text:
        stop(f"the disk is full; the environment needs {NEEDED_GB} GB")
    if any(sign in text for sign in NETWORK_SIGNS):
        stop("PyPI cannot be reached; connect to the network, or set PIP_INDEX_URL to a mirror")
    stop(f"pip failed (see above): {' '.join(command)}")


def install(folder: Path, faiss: str) -> None:
    """Create the environment and install the locked versions, then this package.

    Args:
        folder: where the virtual environment lies.
        faiss: "cpu" or "gpu"; the other one's package is removed, both own the same module.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        check_disk(folder.parent, NEEDED_GB)
        print(f"Creating {folder} with {sys.executable}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    for stamp in folder.glob("installed-*"):
        stamp.unlink()
    quick = ("install", "--quiet", "--retries", "2", "--progress-bar", "off")
    lock = ROOT / "requirements.lock"
    print(f"Installing {lock.name} (minutes, the first time)", flush=True)
    if faiss == "cpu":
        run_pip(python, "uninstall", "--quiet", "--yes", "faiss-gpu")
        run_pip(python, *quick, "-r", str(lock))
        run_pip(python, *quick, "--no-deps", "-e", ".")
    else:
        lines = [line for line in lock.read_text().splitlines() if not line.startswith("faiss-cpu")]
        gpu_lock = folder / "requirements-gpu.lock"
        gpu_lock.write_text("\n".join(lines) + "\n")
        run_pip(python, "uninstall", "--quiet", "--yes", "faiss-cpu")
        run_pip(python, *quick, "-r", str(gpu_lock))
        run_pip(python, *quick, "-c", str(gpu_lock), "-e", ".[gpu,dev]")
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
        return
    if arguments.browser:
        ensure_browser()
        return
    check_python()
    check_libusb()
    install(arguments.venv.absolute(), arguments.faiss)


if __name__ == "__main__":
    main()
