# SPDX-License-Identifier: GPL-2.0-only
"""Images that somebody damaged on purpose, checksums repaired: mounting fails clearly or works, never an oops or a hang."""
import random, struct
from vmtest import *

BLOCK = 4096
PTR = struct.Struct("<QQQII")  # address, twin, birth, checksum, reserved
SUPERS = (16, 1024, 17, 1025)
TABLE = []


def crc32c(data):
    if not TABLE:
        for n in range(256):
            for _ in range(8):
                n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
            TABLE.append(n)
    crc = 0xFFFFFFFF
    for b in data:
        crc = crc >> 8 ^ TABLE[(crc ^ b) & 255]
    return crc ^ 0xFFFFFFFF


class Image:
    """A volume in memory, and where the checksums of its tree are."""

    def __init__(self, data):
        self.data = bytearray(data)

    def block(self, at):
        return self.data[at * BLOCK:(at + 1) * BLOCK]

    def newest(self):
        good = [s for s in SUPERS if self.block(s)[8:16] == b"VXF1SUPR"]
        return max(good, key=lambda s: struct.unpack_from("<Q", self.block(s), 144))

    def nodes(self):
        """Every node of the tree: (address, twin, place of the pointer to it, address of its parent or None)."""
        out, todo = [], [(self.newest() * BLOCK + 176, None)]
        while todo:
            place, parent = todo.pop()
            addr, twin, _, _, _ = PTR.unpack_from(self.data, place)
            if not 32 <= addr < len(self.data) // BLOCK:
                continue
            out.append((addr, twin, place, parent))
            level, items = struct.unpack_from("<HH", self.data, addr * BLOCK + 48)
            if level:
                todo += [(addr * BLOCK + 64 + 64 * i + 32, addr) for i in range(min(items, 63))]
        return out

    def repair(self, nodes, addr):
        """Makes the checksums right from a node up to the superblocks."""
        by_addr = {n[0]: n for n in nodes}
        while addr is not None:
            _, twin, place, parent = by_addr[addr]
            if twin:
                self.data[twin * BLOCK:(twin + 1) * BLOCK] = self.block(addr)
            struct.pack_into("<I", self.data, place + 24, crc32c(self.block(addr)))
            addr = parent
        self.repair_supers()

    def repair_supers(self):
        newest = self.newest()
        pair = (16, 1024) if newest in (16, 1024) else (17, 1025)
        other = pair[1] if newest == pair[0] else pair[0]
        head = self.block(newest)
        for at, slot in zip(pair, (0, 1)):
            struct.pack_into("<I", head, 140, slot)
            struct.pack_into("<Q", head, 152, at)
            struct.pack_into("<I", head, 0, crc32c(head[4:]))
            self.data[at * BLOCK:(at + 1) * BLOCK] = head
        assert other in pair


def damage(base, rng):
    """One damaged image: (what was done, bytes, whether the checksums vouch for the damage)."""
    image = Image(base)
    used = [b for b in range(16, len(base) // BLOCK) if any(base[b * BLOCK:b * BLOCK + 64])]
    kind = rng.randrange(7)
    if kind == 0:
        for _ in range(rng.randrange(1, 30)):
            at = rng.choice(used) * BLOCK + rng.randrange(BLOCK)
            image.data[at] ^= 1 << rng.randrange(8)
        return "bit flips", image.data, False
    if kind == 1:
        return "truncation", image.data[:rng.randrange(1, len(base))], False
    if kind == 2:
        for _ in range(rng.randrange(1, 10)):
            b = rng.choice(used)
            image.data[b * BLOCK:(b + 1) * BLOCK] = bytes(BLOCK) if rng.random() < 0.5 else rng.randbytes(BLOCK)
        return "blocks overwritten", image.data, False
    if kind == 3:
        a, b = rng.choice(used), rng.choice(used)
        image.data[a * BLOCK:(a + 1) * BLOCK], image.data[b * BLOCK:(b + 1) * BLOCK] = image.block(b), image.block(a)
        return "blocks exchanged", image.data, False
    if kind == 4:  # fields of the superblock
        at = image.newest() * BLOCK
        for _ in range(rng.randrange(1, 3)):
            field = rng.choice([96, 104, 112, 120, 128, 136, 144, 176, 184, 208, 212, 216, 224, 232, 248, 252, 256, 264, 272, 312, 328])
            struct.pack_into("<Q" if rng.random() < 0.5 else "<I", image.data, at + field, rng.choice([0, 1, 2, 0xFFFFFFFF, 1 << 31, rng.randrange(1 << 32), rng.randrange(1 << 12)]))
        image.repair_supers()
        return "superblock, repaired", image.data, True
    nodes = image.nodes()
    addr = rng.choice(nodes)[0]
    at = addr * BLOCK
    for _ in range(rng.randrange(1, 8)):
        where = rng.choice([rng.randrange(24, 64), rng.randrange(64, 400), rng.randrange(BLOCK)])
        if rng.random() < 0.5:
            image.data[at + where] = rng.choice([0, 1, 255, 127, 128, rng.randrange(256)])
        else:
            struct.pack_into("<Q", image.data, at + min(where, BLOCK - 8), rng.choice([0, 1, (1 << 64) - 1, 1 << 63, rng.randrange(1 << 64), rng.randrange(1 << 14)]))
    image.repair(nodes, addr)
    return "tree node, repaired", image.data, True


def base_image(path):
    vex.mkfs(path, "-s", "16M")
    for i in range(20):
        (G.work / f"p{i}").write_bytes(random.Random(i).randbytes(7000 * i % 40_000))
    vex.vexfs("mkdir", f"{path}:/d")
    vex.vexfs("put", *[G.work / f"p{i}" for i in range(20)], f"{path}:/d")
    vex.vexfs("collection", "create", f"{path}:/c", "--dim", 8, "--metric", "l2", "--index", "hnsw")
    vex.write_npy(G.work / "h.npy", 200, 8, [float(i * i % 101) for i in range(1600)])
    vex.vexfs("insert", f"{path}:/c", "--npy", G.work / "h.npy")


def use(v, checked):
    """Reads and changes whatever is there; gives the number of errors."""
    errors = 0

    def attempt(f, *args):
        nonlocal errors
        try:
            return f(*args)
        except OSError:
            errors += 1

    for root, dirs, files in os.walk(v.dir):
        for name in dirs[:50] + files[:50]:
            p = os.path.join(root, name)
            attempt(os.lstat, p)
            attempt(lambda: [os.getxattr(p, a, follow_symlinks=False) for a in os.listxattr(p, follow_symlinks=False)])
            if name in files and attempt(os.lstat, p):
                data = attempt(lambda: open(p, "rb").read(1 << 20) if os.path.isfile(p) else None)
                if checked and data is not None and re.fullmatch(r"p\d+", name) and root.endswith("/d"):
                    i = int(name[1:])
                    assert data == random.Random(i).randbytes(7000 * i % 40_000), f"{name} reads other bytes than were written"
        if len(dirs) > 100:
            break
    for name in ("c", "flat", "hnsw"):
        if os.path.isdir(v / name):
            # Whatever dimension it has by now, if it says one.
            said = subprocess.run([vex.BIN / "vexfs", "collection", "info", v / name, "--json"], capture_output=True, text=True, timeout=60).stdout
            dim = min(int(m[1]) if (m := re.search(r'"dim":(\d+)', said)) else 8, 10_000)
            subprocess.run([vex.BIN / "vexfs", "search", v / name, "--vector", ",".join(map(str, range(1, dim + 1))), "-k", "5"], capture_output=True, timeout=60)
    attempt(lambda: (v / "new").write_bytes(b"n" * 10_000))
    attempt(lambda: os.mkdir(v / "a new directory"))
    if os.path.lexists(v / "d/p3"):
        attempt(lambda: os.unlink(v / "d/p3"))
    attempt(os.sync)
    return errors


def meet(path, n, what, checked, seen):
    """Mounts an image, uses and unmounts it. True: it was mounted."""
    dev = run("losetup", "-f", "--show", path).out.strip()
    begin = time.time()
    v = Volume(dev, "/mnt/v", G.driver, "errors=continue" if G.driver == "kernel" and n % 2 else "")
    try:
        v.mount()
    except AssertionError:
        seen["refused"] += 1
        run("losetup", "-d", dev)
        return False
    try:
        errors = use(v, checked)
    except AssertionError as e:
        raise AssertionError(f"image {n} ({what}): {e}")
    p = run("umount", v.dir, ok=None, timeout=60) if G.driver == "kernel" else vex.vexfs("umount", v.dir, ok=None)
    assert p.returncode == 0, f"image {n} ({what}): {p.err}"
    run("losetup", "-d", dev)
    took = time.time() - begin
    assert took < 60, f"image {n} ({what}) took {took:.0f} s"
    seen["mounted"] += 1
    seen["with errors"] += errors > 0
    return True


@test(limit=2400, quick=True, warns=True)
def test_hostile_images():
    """300 damaged images, half of them with their checksums repaired: refused, or usable with errors; no oops, no hang"""
    count = 40 if G.quick else 300
    path = G.work / "hostile"
    base_image(path)
    base = path.read_bytes()
    rng = random.Random(42)
    seen = {"refused": 0, "mounted": 0, "with errors": 0}
    vouched = 0
    for n in range(count):
        what, data, repaired = damage(base, rng)
        path.write_bytes(data)
        vouched += meet(path, n, what, not repaired, seen) and repaired
    assert seen["refused"] >= count // 20 and seen["with errors"] >= count // 40 and vouched > count // 20, (seen, vouched)
    return f"{count} images: " + ", ".join(f"{v} {k}" for k, v in seen.items()) + f", {vouched} mounted with repaired checksums"


def make_images(run):
    """On the host: the images that the fuzzer's inputs stand for."""
    inputs = sorted((TOP / "fuzz/corpus/image").iterdir())
    assert inputs, "no inputs in fuzz/corpus/image"
    target = TOP / "target/vm-images"
    subprocess.run(["cargo", "build", "-q", "--release", "--manifest-path", TOP / "vm/images/Cargo.toml", "--target-dir", target], check=True)
    folder = run.folder / "images"
    folder.mkdir(exist_ok=True)
    made = subprocess.run([target / "release/vexfs-images", folder, "--random", str(20 if run.opt.quick else 300), *inputs], check=True, capture_output=True, text=True).stdout
    (folder / "list").write_text(made)


@test(limit=2400, quick=True, warns=True, before=make_images)
def test_fuzzed_images():
    """The images that the fuzzer's corpus stands for, and 300 more of its kind: refused, or usable with errors; no oops, no hang"""
    path = G.work / "fuzzed"
    seen = {"refused": 0, "mounted": 0, "with errors": 0}
    images = [l.rsplit(" ", 1) for l in (pathlib.Path(G.folder) / "images/list").read_text().splitlines()]
    vouched = 0
    for n, (image, kind) in enumerate(images):
        vex.shutil.copyfile(image, path)
        vouched += meet(path, n, pathlib.Path(image).stem, False, seen) and kind == "repaired"
    corpus = sum(pathlib.Path(i).stem.startswith("seed-") for i, _ in images)
    assert corpus >= 5 and seen["mounted"] >= len(images) // 10 and vouched >= len(images) // 20, (corpus, seen, vouched)
    return f"{len(images)} images, {corpus} of them of the corpus: " + ", ".join(f"{v} {k}" for k, v in seen.items()) + f", {vouched} mounted with repaired checksums"
