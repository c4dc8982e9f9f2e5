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
#[path = "../../../fuzz/src/poke.rs"]
mod poke;
#[allow(dead_code)]
#[path = "../../../fuzz/src/repair.rs"]
mod repair;

use arbitrary::{Arbitrary, Unstructured};
#[cfg(test)]
use machine::Machine;
use machine::{Disk, BLOCK};
use poke::{locate, poke, Place, Poke};
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
