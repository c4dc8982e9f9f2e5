// SPDX-License-Identifier: GPL-2.0-only
//! Writes the disk images that inputs of the fuzz target `image` stand for, so that a mounted volume meets them too.
//!
//!     vexfs-images FOLDER [--random N] INPUT…
//!
//! An input names changes to a small valid image; with `repair` all checksums above them are made right. Besides the inputs that are given
//! N more are made from a fixed sequence. Prints a line for each image: its file, and whether its checksums vouch for the damage.

// The fuzzer's own image and repair. What its targets do with them beyond that is not needed here.
#[allow(dead_code)]
#[path = "../../../fuzz/src/base.rs"]
mod base;
#[allow(dead_code)]
#[path = "../../../fuzz/src/machine.rs"]
mod machine;
#[allow(dead_code)]
#[path = "../../../fuzz/src/repair.rs"]
mod repair;

use arbitrary::{Arbitrary, Unstructured};
#[cfg(test)]
use machine::Machine;
use machine::{Disk, BLOCK};
use repair::Map;
use std::collections::BTreeSet;
use std::io::{Result, Seek, SeekFrom, Write};
use std::path::Path;

/// The beginning of what `fuzz/fuzz_targets/image.rs` reads, field for field: inputs mean the same here.
#[derive(Arbitrary, Debug)]
struct Input {
    logged: bool,
    repair: bool,
    _read_only: bool,
    _look: u8,
    _check: Option<bool>,
    cut: Option<u16>,
    pokes: Vec<Poke>,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Poke {
    place: Place,
    offset: u16,
    how: How,
    both: bool,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Place {
    Super(u8),
    Node(u16),
    Log(u16),
    Data(u16),
    Any(u16),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum How {
    Byte(u8),
    Half(u16),
    Word(u32),
    Long(u64),
    Add(i8),
    AddLong(i64),
    Bit(u8),
    Copy(u16),
    Zero,
}

fn poke(block: &mut [u8; BLOCK], offset: u16, how: How) {
    let at = usize::from(offset) % BLOCK;
    let mut put = |bytes: &[u8]| {
        let n = bytes.len().min(BLOCK - at);
        block[at..at + n].copy_from_slice(&bytes[..n]);
    };
    match how {
        How::Byte(x) => put(&[x]),
        How::Half(x) => put(&x.to_le_bytes()),
        How::Word(x) => put(&x.to_le_bytes()),
        How::Long(x) => put(&x.to_le_bytes()),
        How::Zero => put(&[0; 64]),
        How::Add(x) => block[at] = block[at].wrapping_add_signed(x),
        How::Bit(x) => block[at] ^= 1 << (x % 8),
        How::AddLong(x) => {
            if let Some(b) = block[at..].first_chunk_mut::<8>() {
                *b = u64::from_le_bytes(*b).wrapping_add_signed(x).to_le_bytes();
            }
        }
        How::Copy(from) => {
            let from = usize::from(from) % BLOCK;
            let n = 36.min(BLOCK - at.max(from));
            block.copy_within(from..from + n, at);
        }
    }
}

/// The block that a place names, and its second copy or 0.
fn locate(map: &Map, used: &[u64], place: Place) -> Option<(u64, u64)> {
    let pick = |n: u16, len: usize| if len == 0 { None } else { Some(usize::from(n) % len) };
    Some(match place {
        Place::Super(n) => (map.supers[usize::from(n) % 2], map.supers[(usize::from(n) + 1) % 2]),
        Place::Node(n) => {
            let (addr, node) = map.nodes.iter().nth(pick(n, map.nodes.len())?)?;
            (*addr, node.twin)
        }
        Place::Log(n) => {
            let g = map.groups[pick(n, map.groups.len())?];
            let i = u64::from(n >> 8) % u64::from(g.blocks);
            (g.addr + i, g.twin + i)
        }
        Place::Data(n) => (*map.data.keys().nth(pick(n, map.data.len())?)?, 0),
        Place::Any(n) => (used[pick(n, used.len())?], 0),
    })
}

/// The disk that an input stands for.
fn disk(input: &Input) -> Disk {
    let base = base::base();
    let mut disk = if input.logged { base.logged.clone() } else { base.clean.clone() };
    let map = Map::of(&disk);
    let used = disk.used();
    let mut changed = BTreeSet::new();
    for p in input.pokes.iter().take(16) {
        let Some((addr, twin)) = locate(&map, &used, p.place) else { continue };
        poke(disk.block_mut(addr), p.offset, p.how);
        changed.insert(addr);
        let supers = matches!(p.place, Place::Super(_));
        if twin != 0 && if supers { input.repair || p.both } else { p.both && !input.repair } {
            poke(disk.block_mut(twin), p.offset, p.how);
            if supers {
                changed.insert(twin);
            }
        }
    }
    if input.repair {
        map.repair(&mut disk, changed);
    }
    if let Some(cut) = input.cut {
        disk.blocks = disk.blocks.min(u64::from(cut));
    }
    disk
}

/// Writes it as a file with holes.
fn write(path: &Path, disk: &Disk) -> Result<()> {
    let mut f = std::fs::File::create(path)?;
    f.set_len(disk.blocks * BLOCK as u64)?;
    for at in disk.used().into_iter().filter(|at| *at < disk.blocks) {
        f.seek(SeekFrom::Start(at * BLOCK as u64))?;
        f.write_all(disk.block(at))?;
    }
    Ok(())
}

/// Bytes of the fixed sequence (splitmix64).
fn sequence(n: u64) -> Vec<u8> {
    let mut state = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let len = 40 + next() as usize % 200;
    (0..len).map(|_| next() as u8).collect()
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().expect("vexfs-images FOLDER [--random N] INPUT…");
    let mut inputs = Vec::new();
    while let Some(a) = arguments.next() {
        if a == "--random" {
            let n: u64 = arguments.next().and_then(|n| n.parse().ok()).expect("--random takes a number");
            inputs.extend((0..n).map(|n| (format!("random-{n}"), sequence(n))));
        } else {
            let name = Path::new(&a).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            inputs.push((name, std::fs::read(&a).unwrap_or_else(|e| panic!("{a}: {e}"))));
        }
    }
    for (name, bytes) in inputs {
        let Ok(mut input) = Input::arbitrary(&mut Unstructured::new(&bytes)) else { continue };
        if name.starts_with("random-") {
            // An image cut off anywhere is refused at once, mostly; of those there are enough.
            input.cut = input.cut.filter(|cut| cut % 8 == 0);
        }
        let path = Path::new(&folder).join(format!("{name}.img"));
        write(&path, &disk(&input)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        println!("{} {}", path.display(), if input.repair { "repaired" } else { "damaged" });
    }
}
