"""Run one notebook with papermill, so that its output is there only when every cell has run.

Usage, from the repository root::

    python workflow/run_notebook.py notebooks/03_lspn_training.ipynb OUT.ipynb
        --parameters '{"profile": "smoke", "category": "gland", "seed": 0}' --threads 1
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
REPORT_EVERY_S = 5.0


def set_environment(threads: int, private: str) -> None:
    """Prepare what the kernel inherits: thread counts, import path, quiet progress bars.

    Args:
        threads: how many threads numerical libraries may start.
        private: an empty folder, as IPYTHONDIR: it keeps a reader's own start-up files out, whose
            names the notebooks would refuse as unknown parameters.
    """
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)
    path = [str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    os.environ["IPYTHONDIR"] = os.environ["JUPYTER_RUNTIME_DIR"] = private
    os.environ["PYTHONUTF8"] = "1"  # whatever the locale: notebooks hold signs beyond ASCII
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernel, not a user's
    os.environ["OPEN3D_DISABLE_WEB_VISUALIZER"] = "true"  # it prints into the pages that import it
    os.environ["SPYDER_PROGRESS_BARS"] = "1"  # tqdm.auto then writes text, which we can pass on
    os.environ.setdefault("TQDM_MININTERVAL", "1" if sys.stderr.isatty() else "15")


def stop_with_parent() -> None:
    """Interrupt this process once its parent is gone.

    A workflow killed outright (SIGKILL, a closed terminal) cannot tell its jobs. A job that went
    on would write the very files that the resumed workflow writes.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def interrupt(signum: int, frame: Any) -> None:
    """Leave as on Ctrl-C, so that papermill shuts the kernel down."""
    raise KeyboardInterrupt


def first_line(source: str) -> str:
    """Return the first line of a cell that is code."""
    lines = [line.strip() for line in source.splitlines()]
    return next((line for line in lines if line and not line.startswith("#")), "")


def describe_failure(notebook: Path, partial: Path, error: Exception) -> str:
    """Return the message that names notebook, cell, error and the partially executed copy."""
    from papermill.exceptions import PapermillExecutionError

    if not isinstance(error, PapermillExecutionError):
        return f"{notebook} failed: {type(error).__name__}: {error}\n  executed so far: {partial}"
    cells = json.loads(partial.read_text(encoding="utf-8"))["cells"]
    # papermill itself adds a Markdown cell above the failing one, which shifts plain indices
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    failed = [any(o["output_type"] == "error" for o in cell["outputs"]) for cell in code]
    number = failed.index(True) + 1 if True in failed else "?"
    return (
        f"{notebook} failed in code cell {number}: {first_line(error.source)}\n"
        f"  {error.ename}: {error.evalue}\n"
        f"  executed so far, with the traceback: {partial}"
    )


def reporting_engine(title: str) -> type:
    """Return papermill's engine, saying now and then on standard error which cell it is at."""
    from papermill.engines import NBClientEngine

    class ReportingEngine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> Any:
            code = [index for index, cell in enumerate(nb_man.nb.cells) if cell.cell_type == "code"]
            start_cell, said_at = nb_man.cell_start, 0.0

            def report(cell: Any, cell_index: int | None = None, **options: Any) -> None:
                nonlocal said_at
                if cell_index in code and time.monotonic() - said_at > REPORT_EVERY_S:
                    said_at = time.monotonic()
                    where = f"{code.index(cell_index) + 1} of {len(code)}"
                    print(f"{title}: cell {where}: {first_line(cell.source)}", file=sys.stderr)
                start_cell(cell, cell_index, **options)

            nb_man.cell_start = report
            return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)

    return ReportingEngine


def run(notebook: Path, out: Path, parameters: dict[str, Any], threads: int = 1) -> None:
    """Execute a notebook from the current folder and move the result to `out` when it succeeded.

    Args:
        notebook: the notebook to run; its cell tagged `parameters` holds the defaults.
        out: where the executed notebook goes.
        parameters: what replaces the defaults; one called ``workers`` is set to `threads`.
        threads: thread limit of the numerical libraries in the kernel.

    Raises:
        SystemExit: a cell failed; the message names it and the partially executed copy.
    """
    import papermill
    from papermill.engines import papermill_engines
    from traitlets.config import Config

    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.stem + ".partial.ipynb")
    partial.unlink(missing_ok=True)
    shown = [f"{name} {parameters[name]}" for name in ("category", "seed") if name in parameters]
    title = ", ".join([notebook.stem, *shown])
    papermill_engines.register("reporting", reporting_engine(title))
    if "workers" in papermill.inspect_notebook(notebook):
        parameters = {"workers": threads} | parameters
    # Sockets, since two kernels that start together can draw the same port; their paths are short.
    with tempfile.TemporaryDirectory(prefix="g2sf-", dir="/tmp") as private:
        set_environment(threads, private)
        channels = {"transport": "ipc", "ip": f"{private}/kernel"}
        try:
            papermill.execute_notebook(
                notebook,
                partial,
                parameters=parameters,
                engine_name="reporting",
                progress_bar=False,
                stderr_file=sys.stderr,  # the library's progress bars and warnings
                config=Config({"KernelManager": channels}),
            )
        except Exception as error:
            raise SystemExit(describe_failure(notebook, partial, error)) from None
    os.replace(partial, out)


def main() -> None:
    """Run from the Snakefile, or by hand."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parameters", type=json.loads, default={}, help="a JSON object")
    parser.add_argument("--device", help="a parameter that does not make results out of date")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.device:
        arguments.parameters["device"] = arguments.device
    signal.signal(signal.SIGTERM, interrupt)
    stop_with_parent()
    try:
        run(arguments.notebook, arguments.out, arguments.parameters, arguments.threads)
    except KeyboardInterrupt:
        logging.disable()  # asyncio would add, on the way out, that the kernel died
        print(f"{arguments.notebook} interrupted", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
