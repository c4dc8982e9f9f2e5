// SPDX-License-Identifier: GPL-2.0-only
//! A disk image that was changed anywhere: opened, read, checked, written to, closed, opened again.
//!
//! The input is a list of changes to the bytes of a small valid image, and a list of operations. With `repair` all
//! checksums above the changed bytes are made right, so that the volume believes them: nothing may panic, hang,
//! write outside the device or contradict itself. Without it the volume has to notice: in addition nothing wrong
//! may be read.
//!
//! Run: `cargo fuzz run image`.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use std::collections::BTreeSet;
use std::sync::OnceLock;
use vexfs_core::check::{Check, Mode, Options};
use vexfs_core::io::{Io, IoKind};
use vexfs_core::op::Op;
use vexfs_fuzz::base::base;
use vexfs_fuzz::exercise::{self, Change};
use vexfs_fuzz::machine::{self, Disk};
use vexfs_fuzz::poke::{locate, poke, Place, Poke};
use vexfs_fuzz::repair::Map;
use vexfs_fuzz::Machine;

#[derive(arbitrary::Arbitrary, Debug)]
struct Input {
    /// The image with a log instead of the one that was closed.
    logged: bool,
    repair: bool,
    read_only: bool,
    /// Uses the volume before, after and once more after it was closed: bits.
    look: u8,
    /// Checks it, and repairs what the check finds.
    check: Option<bool>,
    /// Cuts the image off behind this block.
    cut: Option<u16>,
    pokes: Vec<Poke>,
    changes: Vec<Change>,
}

fn maps() -> &'static [Map; 2] {
    static MAPS: OnceLock<[Map; 2]> = OnceLock::new();
    MAPS.get_or_init(|| [Map::of(&base().clean), Map::of(&base().logged)])
}

/// Checks the volume; number of errors that are left, if the check could be carried out.
fn check(disk: &mut Disk, mode: Mode) -> Option<u64> {
    let blocks = disk.blocks;
    let mut c = Check::new(machine::env(), blocks, Options { mode, metadata_only: false });
    let mut steps = 0;
    let figures = c.run(&mut |io: &mut Io| {
        steps += 1;
        assert!(steps < 100_000, "hang: the check does not end");
        assert!(mode != Mode::Look || io.kind == IoKind::Read, "a check that only looks writes");
        disk.carry_out(io)
    });
    let figures = figures.ok()?;
    assert!(figures.repaired <= figures.errors);
    assert!(figures.errors == 0 || !c.findings().is_empty());
    Some(figures.errors - figures.repaired)
}

fn run(input: Input) {
    let base = base();
    let map = &maps()[usize::from(input.logged)];
    let mut disk: Disk = if input.logged { base.logged.clone() } else { base.clean.clone() };
    let used = disk.used();
    let mut changed = BTreeSet::new();
    for p in input.pokes.iter().take(16) {
        let Some((addr, twin)) = locate(map, &used, p.place) else { continue };
        poke(disk.block_mut(addr), p.offset, p.how);
        changed.insert(addr);
        if let Place::Super(_) = p.place {
            if input.repair || p.both {
                poke(disk.block_mut(twin), p.offset, p.how);
                changed.insert(twin);
            }
        } else if twin != 0 && p.both && !input.repair {
            poke(disk.block_mut(twin), p.offset, p.how);
        }
    }
    if input.repair {
        map.repair(&mut disk, changed);
    }
    if let Some(cut) = input.cut {
        disk.blocks = disk.blocks.min(u64::from(cut));
    }
    if input.look & 16 != 0 {
        check(&mut disk, Mode::Look);
    }
    let mut m = match Machine::open(disk, input.read_only) {
        Ok(m) => m,
        Err(_) => return,
    };
    if !input.repair {
        exercise::compare(&mut m, base, false);
    }
    let changes = &input.changes[..input.changes.len().min(12)];
    if input.look & 1 != 0 || !changes.is_empty() {
        let (files, collections) = exercise::read_all(&mut m);
        exercise::change(&mut m, changes, &files, &collections);
        if input.look & 2 != 0 {
            exercise::read_all(&mut m);
        }
    }
    // As it is after closing, or as a crash leaves it.
    let closed = input.look & 4 == 0 && m.call(Op::Close).is_ok();
    let mut disk = m.disk;
    let sound = input.pokes.is_empty() && input.cut.is_none();
    let mut repaired = false;
    if let Some(repair) = input.check {
        if repair && !sound {
            repaired = true;
            if check(&mut disk, Mode::All) == Some(0) {
                assert_eq!(check(&mut disk, Mode::Look), Some(0), "a repair that says it is complete is not");
            }
        } else {
            let errors = check(&mut disk, Mode::Look);
            assert!(!sound || errors == Some(0), "the check finds errors on a sound volume");
        }
    }
    let again = Machine::open(disk, true);
    if closed && sound {
        assert!(again.is_ok(), "a sound volume does not open again");
    }
    if let (Ok(mut m), true) = (again, input.look & 8 != 0) {
        if !input.repair && changes.is_empty() {
            exercise::compare(&mut m, base, repaired);
        }
        exercise::read_all(&mut m);
    }
}

fuzz_target!(|input: Input| run(input));
