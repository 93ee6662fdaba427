"""What `seqrt doctor BUNDLE` says of a bundle: which backends it serves here, and whether its engines fit."""

from pathlib import Path
from typing import Final

from seqrt.cli.condition import Condition, absent
from seqrt.cli.doctor_gpu import Machine
from seqrt.errors import SeqrtError
from seqrt.runtime.backends import open_engines
from seqrt.runtime.build import choose_variant
from seqrt.runtime.bundle import Bundle
from seqrt.runtime.engines.flavour import NAMES, Flavour
from seqrt.runtime.engines.record import FOLDER, EngineRecord, misfit, read_record
from seqrt.runtime.engines.tensorrt import validity

_UNNAMED: Final = "diagnostics 0"  # what `validity` says where CUDA could not be asked
_ADVICE: Final = {  # what to do about some of TensorRT's diagnostics; about others, build again
    "OLD_CUDA_DRIVER": "update the NVIDIA driver",
    "OLD_CUDA_RUNTIME": "update CUDA: pip install -U cuda-bindings",
    "INSUFFICIENT_GPU_MEMORY": "close other programs, or export with a smaller --capacity",
    "CUDA_ERROR": "see what is said of driver and CUDA",
}


def conditions(bundle: Bundle, machine: Machine, *, cpu_works: bool) -> list[Condition]:
    """One for each backend that works here, and one for each directory of engines."""
    found, served = [], set()
    for folder in _folders(bundle):
        condition, backend = engines(bundle, folder, machine)
        found.append(condition)
        if condition.is_ok:
            served.add(backend)
    backends = (*(("cpu",) if cpu_works else ()), *machine.backends)
    held = Condition("graphs", "ok", f"for {', '.join(bundle.manifest.variants)}")
    return [held, *(graphs(bundle, backend, machine, backend in served) for backend in backends), *found]


def graphs(bundle: Bundle, backend: str, machine: Machine, has_engines: bool) -> Condition:
    """Whether `--backend` can run the bundle."""
    name = f"--backend {backend}"
    try:
        if backend in NAMES:
            variant = choose_variant(bundle, machine.flavours[backend], None)
        else:
            opened = open_engines(bundle, backend, 0)  # they are made when they are asked for, which none is
            variant = opened.variant
            opened.close()
    except SeqrtError as error:
        return absent(name, error)
    if backend in NAMES and not has_engines:
        return Condition(name, "absent", f"{variant} graphs, but no engines that fit", _build(bundle, backend))
    return Condition(name, "ok", f"{variant} graphs")


def engines(bundle: Bundle, folder: Path, machine: Machine) -> tuple[Condition, str | None]:
    """Whether a directory of engines fits the bundle and the machine, and for which backend it is."""
    name = f"{FOLDER}/{folder.name}"
    try:
        record = read_record(folder)
        backend, flavour = record.settings.backend, machine.flavours.get(record.settings.backend)
        own = flavour.version if flavour is not None else record.version
        why = misfit(bundle, folder, record, own, machine.capability)
    except SeqrtError as error:  # a graph that was built and is no more, besides
        return absent(name, error), None
    return _engines(bundle, folder, machine, record, why), backend


def _engines(bundle: Bundle, folder: Path, machine: Machine, record: EngineRecord, why: str | None) -> Condition:
    """The first of what keeps engines from running here; `why` is what their record says."""
    name, backend, here = f"{FOLDER}/{folder.name}", record.settings.backend, machine.capability
    flavour, wanted = machine.flavours.get(backend), f"{NAMES.get(backend, backend)} {record.version}"
    if here is not None and flavour is not None and backend not in machine.backends:
        detail = f"{NAMES[backend]} does not run on compute capability {here}"
        return Condition(name, "absent", detail, "use another --backend")
    if why is not None:
        return Condition(name, "absent", why, _build(bundle, backend))
    if flavour is None:
        return Condition(name, "absent", f"needs {wanted}, which cannot be loaded here", "see what is said of it")
    if (refused := header_refused(flavour, folder, record, here is not None)) is not None:
        file, reason = refused
        advice = next((_ADVICE[kind] for kind in reason.split(", ") if kind in _ADVICE), None)
        return Condition(name, "absent", f"{wanted} refuses {file}: {reason}", advice or _build(bundle, backend))
    if here is None:
        able = " or ".join(record.settings.compute_capabilities)
        advice = f"copy the bundle to a machine with a GPU{f' of compute capability {able}' if able else ''}"
        return Condition(name, "absent", f"fits this bundle and {wanted}, but there is no GPU", advice)
    return Condition(name, "ok", f"fits this bundle, {wanted} and this GPU")


def header_refused(flavour: Flavour, folder: Path, record: EngineRecord, has_gpu: bool) -> tuple[str, str] | None:
    """The first file that TensorRT refuses by its header, and why; None also where this TensorRT cannot say.

    Without a GPU it finds only what is no engine at all.
    """
    try:
        runtime = flavour.api.Runtime(flavour.logger)
    except Exception:  # without a GPU, some make none
        return None
    if not hasattr(runtime, "get_engine_validity"):
        return None
    size = int(getattr(runtime, "engine_header_size", -1))  # -1 reads all
    for graph in record.graphs:
        try:
            with (folder / graph.file).open("rb") as file:
                why = validity(flavour, runtime, file.read(size))
        except OSError as error:
            why = f"it cannot be read ({error.strerror})"
        if why == _UNNAMED:
            why = flavour.why() if has_gpu else None
        if why is not None:
            return graph.file, why
    return None


def _folders(bundle: Bundle) -> list[Path]:
    """Directories of engines; hidden ones are being built."""
    return sorted(path for path in (bundle.path / FOLDER).glob("[!.]*") if path.is_dir())


def _build(bundle: Bundle, backend: str) -> str:
    return f"run: seqrt build {bundle.path} --backend {backend}"
