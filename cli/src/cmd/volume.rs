// SPDX-License-Identifier: GPL-2.0-only
//! Commands about a volume as a whole: info, scrub.

use crate::args::{show_uuid, Info, Scrub};
use crate::fail;
use crate::fail::{code, Done, Failure};
use crate::{fsck, show};
use serde_json::{json, Value};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use vexfs_core::check::{Mode, Options};
use vexfs_core::format::{Super, BLOCK, STATE_CLEAN, STATE_ERRORS, SUPER_MAGIC, SUPER_SLOTS};
use vexfs_embedded::{Access, FileDevice, OpenError};

/// `vexfs info`: what the newest superblock says; also of a volume that is mounted.
pub fn info(a: &Info) -> Done {
    let name = a.target.display();
    let file = std::fs::File::open(&a.target).map_err(|e| Failure::io(&name, &e))?;
    let meta = file.metadata().map_err(|e| Failure::io(&name, &e))?;
    let kind = meta.file_type();
    if kind.is_dir() {
        fail!(code::USAGE, "{name}: is a directory; give the image file or block device (findmnt {name} shows it)");
    }
    if !kind.is_file() && !kind.is_block_device() {
        fail!(code::USAGE, "{name}: is neither an image file nor a block device");
    }
    let len = (&file).seek(SeekFrom::End(0)).map_err(|e| Failure::io(&name, &e))?;
    fsck::empty(len, &name.to_string())?;
    let mut best: Option<Super> = None;
    let (mut good, mut damaged) = (0, 0);
    for pair in &SUPER_SLOTS {
        let mut unused = 0;
        for slot in pair {
            let mut block = vec![0; BLOCK];
            let read = file.read_exact_at(&mut block, slot * BLOCK as u64).is_ok();
            let s = Super::parse(&block).filter(|s| {
                let crc = vexfs_embedded::crc32c(0, &block[4..]);
                s.magic == SUPER_MAGIC && s.crc == crc && s.addr == *slot
            });
            match s {
                Some(s) => {
                    good += 1;
                    if best.is_none_or(|b| b.generation < s.generation) {
                        best = Some(s);
                    }
                }
                None if read && block.iter().all(|b| *b == 0) => unused += 1,
                None => damaged += 1,
            }
        }
        // A new volume has not written the second pair yet.
        damaged += unused % 2;
    }
    let Some(s) = best else {
        fail!(code::FAILED, "{name}: no VexFS on it; make one: mkfs.vexfs {name}");
    };
    if s.blocks > len / BLOCK as u64 {
        return Err(OpenError::from_core(&name.to_string(), vexfs_core::Error::Truncated).into());
    }
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
            "superblocks": good, "superblocks_damaged": damaged, "features": {"compat": s.compat, "ro_compat": s.ro_compat, "incompat": s.incompat},
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
        (
            "superblocks",
            match damaged {
                0 => "good".to_string(),
                n => format!("{n} damaged, {good} good; repair: fsck.vexfs -p {name}"),
            },
        ),
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
    drop(device);
    let paths = fsck::Paths::of(&a.target, findings.iter().filter(|x| x.is_error()));
    let bad: Vec<_> = findings.iter().filter(|x| x.is_error()).collect();
    if a.json {
        let mut o = fsck::figures_json(&f);
        o["target"] = name.as_str().into();
        o["findings"] = bad.iter().map(|x| Value::from(paths.tell(x))).collect();
        show::line(o)?;
    } else {
        for x in &bad {
            show::line(format!("{name}: {}", paths.tell(x)))?;
        }
        show::line(format!(
            "{name}: {} and {} read and verified, {}",
            show::counted(f.nodes, "tree node"),
            show::counted(f.data_blocks, "data block"),
            show::counted(f.errors, "error")
        ))?;
    }
    if f.errors > 0 {
        fail!(code::DAMAGED, "{name}: damaged; {}", fsck::advice(&name, Mode::Look, &findings).join("; "));
    }
    Ok(())
}
