"""Makes sure that SAPIEN can draw: keeps the machine's own Vulkan driver where it answers, otherwise unpacks Mesa's
software driver (lavapipe >= 24.3) into .cache/vulkan. Needs no root and never changes the system. Run by setup.sh.

Packages come from the distribution that the machine's own apt configuration names; its `<codename>-backports` suite is
used only where the normal suites are too old. Exit codes: 0 pictures can be drawn, 4 they cannot (the reason and the
remedy are printed).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rl.sims import vulkan_driver
from rl.sims.vulkan_driver import CACHE, Driver

REPO = Path(__file__).resolve().parent.parent
ROOT = CACHE / "root"
APT = CACHE / "apt"
MIN_MESA = (24, 3)  # first lavapipe with VK_KHR_external_semaphore_fd, which SAPIEN asks for
# Beside the driver: what SAPIEN and OpenCV link against and a machine without a desktop lacks.
PACKAGES = ["mesa-vulkan-drivers", "libx11-6", "libgl1", "libglib2.0-0"]
PROBE_TIMEOUT_S = 120
REMEDY = """SAPIEN cannot draw pictures on this machine: {reason}
Install a Vulkan driver and start again. With a GPU: the vendor's driver (in a container also its Vulkan part,
NVIDIA_DRIVER_CAPABILITIES=all). Without a GPU, Mesa >= 24.3 with its software driver:
  Debian 12      uri="$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Component: main' | head -n 1)"
                 echo "deb $uri bookworm-backports main" | sudo tee /etc/apt/sources.list.d/backports.list
                 sudo apt-get update
                 sudo apt-get install -y -t bookworm-backports mesa-vulkan-drivers libgl1 libglib2.0-0
  Ubuntu 24.04   sudo apt-get update && sudo apt-get install -y mesa-vulkan-drivers libgl1 libglib2.0-0
  Fedora         sudo dnf install mesa-vulkan-drivers mesa-libGL glib2
  Arch           sudo pacman -S vulkan-swrast libglvnd glib2
"""


class SetupError(Exception):
    """The software driver cannot be had here; the text says why."""


def probe(driver: Driver | None) -> Driver | str:
    """Draws a test picture with a candidate (None: the process environment as it is). The candidate with its renderer
    filled in, or the reason why it does not draw."""
    with tempfile.TemporaryDirectory() as tmp:
        record = Path(tmp) / "record.json"
        vulkan_driver.write_record(record, driver or Driver())
        env = {**os.environ, vulkan_driver.RECORD_VARIABLE: str(record)}
        command = [sys.executable, "-m", "rl.sims.render_probe", str(Path(tmp) / "probe.png")]
        try:
            done = subprocess.run(command, env=env, cwd=REPO, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"the test picture took longer than {PROBE_TIMEOUT_S} s"
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode} without a word"])[-1]
        return last if done.returncode == 1 else f"the test picture crashed ({done.returncode}): {last}"
    found = driver or Driver()
    return Driver(json.loads(done.stdout.strip().splitlines()[-1])["device"], found.icd, found.preload)


def run(command: list[str]) -> str:
    """Standard output. Raises SetupError with the program's last words when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise SetupError(f"`{' '.join(command[:2])} ...` failed: {' / '.join(words)}")
    return done.stdout


def apt(tool: str, *args: str, own_sources: bool = True) -> str:
    """An apt program on folders of ours, so that nothing of the system is locked or changed and no root is needed."""
    (APT / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (APT / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    options = {
        "Dir::State::lists": f"{APT}/lists",
        "Dir::Cache": f"{APT}/cache",
        "APT::Sandbox::User": "root",  # as root, apt would hand over to a user who may not enter our folder
        "Acquire::Languages": "none",
    }
    if own_sources:
        options |= {"Dir::Etc::sourcelist": f"{APT}/sources.list", "Dir::Etc::sourceparts": "/dev/null"}
    return run([tool, *(word for name, value in options.items() for word in ("-o", f"{name}={value}")), *args])


def update(own_sources: bool = True) -> str:
    """Fetches the package lists. A source that fails does no harm as long as another one has the driver, so the
    complaint is returned, to be shown if none has."""
    try:
        apt("apt-get", "-o", "APT::Update::Error-Mode=any", "update", own_sources=own_sources)
    except SetupError as e:
        return f"; {e}"
    return ""


def write_sources() -> str:
    """Writes sources.list with the distribution's main, -updates and -backports suites; returns the code name."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(), re.MULTILINE))
    codename = release.get("VERSION_CODENAME", "")
    fields = "$(REPO_URI)|$(CODENAME)|$(COMPONENT)|$(ORIGIN)"
    query = ["indextargets", "--format", fields]
    # The system's own lists tell the mirror; a fresh container has none yet, so they are fetched into our folder.
    targets, complaint = run(["apt-get", *query]), ""
    if not targets.strip():
        complaint = update(own_sources=False)
        targets = apt("apt-get", *query, own_sources=False)
    origin = release["ID"]
    mirrors = {
        uri
        for uri, suite, component, who in (line.split("|") for line in targets.split())
        if suite == codename and component == "main" and who.lower() == origin
    }
    if not mirrors:
        raise SetupError(
            f"apt knows no source for {release.get('PRETTY_NAME', 'this system')} ({codename}, main){complaint}"
        )
    keyring = Path(f"/usr/share/keyrings/{origin}-archive-keyring.gpg")
    signed = f"[signed-by={keyring}] " if keyring.is_file() else ""
    suites = [codename, f"{codename}-updates", f"{codename}-backports"]
    lines = [f"deb {signed}{uri} {suite} main" for uri in sorted(mirrors) for suite in suites]
    (APT / "sources.list").write_text("\n".join(lines) + "\n")
    return codename


def recent_enough(policy: str) -> bool:
    """Whether the candidate in `apt-cache policy` output is Mesa >= 24.3."""
    version = re.search(r"Candidate: (?:\d+:)?(\d+)\.(\d+)", policy)
    return version is not None and (int(version[1]), int(version[2])) >= MIN_MESA


def unpack() -> None:
    """Downloads lavapipe and what it needs, and unpacks all into .cache/vulkan/root (made whole or not at all)."""
    for tool in ("apt-get", "apt-cache", "dpkg"):
        if shutil.which(tool) is None:
            raise SetupError(f"no Vulkan driver answers, and there is no `{tool}` to fetch a software driver with")
    APT.mkdir(parents=True, exist_ok=True)
    codename = write_sources()
    print("vulkan: fetching Mesa's software driver ...", flush=True)
    complaint = update()
    suite: list[str] = []
    if not recent_enough(apt("apt-cache", "policy", "mesa-vulkan-drivers")):
        suite = ["-t", f"{codename}-backports"]
        try:
            found = recent_enough(apt("apt-cache", *suite, "policy", "mesa-vulkan-drivers"))
        except SetupError as e:  # no such suite, or its list could not be fetched
            raise SetupError(f"{e}{complaint}") from e
        if not found:
            raise SetupError(f"{codename} and its backports have no Mesa >= {MIN_MESA[0]}.{MIN_MESA[1]}{complaint}")
    plan = apt("apt-get", "install", "-s", "--no-install-recommends", *suite, *PACKAGES)
    # "Inst NAME [INSTALLED] (VERSION ORIGIN [ARCH])": the exact versions that apt would install.
    chosen = re.findall(r"^Inst (\S+) (?:\[[^]]*\] )?\((\S+)", plan, re.MULTILINE)
    with tempfile.TemporaryDirectory(dir=CACHE) as tmp:
        folder = Path(tmp) / "debs"
        folder.mkdir()
        os.chdir(folder)  # `apt-get download` writes where it stands
        apt("apt-get", "download", *(f"{name}={version}" for name, version in chosen))
        os.chdir(REPO)
        for deb in sorted(folder.glob("*.deb")):
            run(["dpkg", "-x", str(deb), str(Path(tmp) / "root")])
        shutil.rmtree(ROOT, ignore_errors=True)
        (Path(tmp) / "root").rename(ROOT)


def unpacked_driver() -> Driver:
    """The unpacked driver with a description that names it by full path, and the unpacked libraries that it, SAPIEN and
    OpenCV need. Raises SetupError when the packages held no such driver."""
    libraries = sorted(ROOT.glob("usr/lib/**/libvulkan_lvp.so"))
    descriptions = sorted(ROOT.glob("usr/share/vulkan/icd.d/lvp_icd*.json"))
    if not libraries or not descriptions:
        raise SetupError(f"{ROOT} holds no lavapipe; remove {CACHE} and start again")
    description = json.loads(descriptions[0].read_text())
    description["ICD"]["library_path"] = str(libraries[0])
    icd = CACHE / "lvp_icd.json"
    icd.write_text(json.dumps(description, indent=2) + "\n")
    site = Path(sys.prefix) / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    users = [libraries[0], *site.glob("sapien/pysapien.*.so"), *site.glob("cv2/cv2*.so")]
    search = f"{libraries[0].parent}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    env = {**os.environ, "LC_ALL": "C", "LD_LIBRARY_PATH": search}
    needed: set[str] = set()
    for user in users:
        listing = subprocess.run(["ldd", str(user)], env=env, capture_output=True, text=True, check=True).stdout
        needed |= set(re.findall(rf"=> ({re.escape(str(ROOT))}\S+)", listing))
    return Driver(icd=str(icd), preload=sorted(needed))


def find_driver() -> Driver:
    """The first candidate that draws. Raises SetupError when none does."""
    as_it_is = probe(None)
    if isinstance(as_it_is, Driver):
        return as_it_is
    if not any(ROOT.glob("usr/lib/**/libvulkan_lvp.so")):
        unpack()
    software = unpacked_driver()
    if shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0:
        # The GPU's driver may lack only a library of a desktop.
        found = probe(Driver(preload=software.preload))
        if isinstance(found, Driver):
            return found
        print(f"vulkan: WARNING: there is a GPU, but its Vulkan driver does not answer ({found})")
        print("vulkan: WARNING: pictures are drawn on the CPU; in a container set NVIDIA_DRIVER_CAPABILITIES=all")
    found = probe(software)
    if isinstance(found, str):
        raise SetupError(f"the unpacked software driver fails: {found}")
    return found


def main() -> int:
    record = vulkan_driver.record_path()
    if record.is_file():
        return 0
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        driver = find_driver()
    except SetupError as e:
        print(REMEDY.format(reason=e), file=sys.stderr)
        return 4
    if not vulkan_driver.chosen_by_user():  # a choice made for one shell is not the machine's
        vulkan_driver.write_record(record, driver)
    print(f"vulkan: SAPIEN draws on {driver.renderer}" + (" with the unpacked Mesa driver" if driver.icd else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
