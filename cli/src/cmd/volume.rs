// SPDX-License-Identifier: GPL-2.0-only
//! Commands about a volume as a whole: info, scrub.

use crate::args::{show_uuid, Info, Scrub};
use crate::fail;
use crate::fail::{code, Done, Failure};
use crate::{fsck, show};
use serde_json::{json, Value};
use std::os::unix::fs::FileExt;
use vexfs_core::check::Options;
use vexfs_core::format::{Super, BLOCK, STATE_CLEAN, STATE_ERRORS, SUPER_MAGIC, SUPER_SLOTS};
use vexfs_embedded::{Access, FileDevice};

/// `vexfs info`: what the newest superblock says; also of a volume that is mounted.
pub fn info(a: &Info) -> Done {
    let name = a.target.display();
    let file = std::fs::File::open(&a.target).map_err(|e| Failure::io(&name, &e))?;
    if file.metadata().is_ok_and(|m| m.is_dir()) {
        fail!(code::USAGE, "{name}: is a directory; give the image file or block device (findmnt {name} shows it)");
    }
    let mut best: Option<Super> = None;
    let mut good = 0;
    for slot in SUPER_SLOTS.iter().flatten() {
        let mut block = vec![0; BLOCK];
        if file.read_exact_at(&mut block, slot * BLOCK as u64).is_err() {
            continue;
        }
        let Some(s) = Super::parse(&block) else { continue };
        let crc = vexfs_embedded::crc32c(0, &block[4..]);
        if s.magic == SUPER_MAGIC && s.crc == crc && s.addr == *slot {
            good += 1;
            if best.is_none_or(|b| b.generation < s.generation) {
                best = Some(s);
            }
        }
    }
    let Some(s) = best else {
        fail!(code::FAILED, "{name}: no VexFS on it; make one: mkfs.vexfs {name}");
    };
    let label = String::from_utf8_lossy(&s.label).trim_end_matches('\0').to_string();
    let state = match (s.state & STATE_CLEAN != 0, s.state & STATE_ERRORS != 0) {
        (_, true) => "has errors",
        (true, _) => "clean",
        _ => "not cleanly unmounted, or in use",
    };
    let (total, free) = (s.blocks.saturating_mul(BLOCK as u64), s.free_blocks.saturating_mul(BLOCK as u64));
    if a.json {
        return show::line(json!({
            "target": name.to_string(), "uuid": show_uuid(&s.uuid), "label": label, "version": s.version, "state": state,
            "bytes": total, "free_bytes": free, "block_size": s.block_size, "metadata_copies": s.copies, "inodes": s.inodes,
            "generation": s.generation, "mounts": s.mounts, "created": s.created, "written": s.written,
            "superblocks": good, "features": {"compat": s.compat, "ro_compat": s.ro_compat, "incompat": s.incompat},
        }));
    }
    let rows = [
        ("UUID", show_uuid(&s.uuid)),
        ("label", show::name(label.as_bytes())),
        ("state", state.to_string()),
        ("size", show::size(total)),
        ("free at the last checkpoint", show::size(free)),
        ("inodes", show::count(s.inodes)),
        ("metadata", if s.copies == 2 { "kept twice" } else { "kept once" }.to_string()),
        ("good superblocks", format!("{good} of 4")),
        ("created", show::time(s.created)),
        ("last checkpoint", format!("{} (generation {})", show::time(s.written), s.generation)),
        ("mounts", show::count(s.mounts)),
        ("format version", s.version.to_string()),
    ];
    show::line(format!("{name}: VexFS"))?;
    for (what, value) in rows {
        show::line(format!("  {what:28} {value}"))?;
    }
    Ok(())
}

/// `vexfs scrub`: the checker reads and verifies all that is in use, and writes nothing.
pub fn scrub(a: &Scrub) -> Done {
    let name = a.target.display().to_string();
    let device = FileDevice::open(&a.target, Access::ReadOnly)?;
    let (f, findings) = fsck::run_check(&device, Options::default(), &name)?;
    let bad: Vec<_> = findings.iter().filter(|x| x.is_error()).collect();
    if a.json {
        let mut o = fsck::figures_json(&f);
        o["target"] = name.as_str().into();
        o["findings"] = bad.iter().map(|x| Value::from(x.to_string())).collect();
        show::line(o)?;
    } else {
        for x in &bad {
            show::line(format!("{name}: {x}"))?;
        }
        show::line(format!(
            "{name}: {} tree nodes and {} data blocks read and verified, {} errors",
            show::count(f.nodes),
            show::count(f.data_blocks),
            show::count(f.errors)
        ))?;
    }
    if f.errors > 0 {
        fail!(code::DAMAGED, "{name}: damaged; repair with fsck.vexfs -p {name}");
    }
    Ok(())
}
