// SPDX-License-Identifier: GPL-2.0-only
//! mkfs.vexfs: looks at what is there before it makes a volume over it.

use crate::args::{show_uuid, Metadata, Mkfs};
use crate::fail;
use crate::fail::{code, Done, Failure};
use crate::{probe, show};
use serde_json::json;
use std::io;
use std::os::unix::fs::FileTypeExt;
use vexfs_core::format::{BLOCK, VOLUME_MIN};
use vexfs_embedded::{make, Access, Device, FileDevice, MakeOptions};

/// Makes the volume.
pub fn run(a: &Mkfs) -> Done {
    let name = a.target.display().to_string();
    if a.label.len() > 64 {
        fail!(code::USAGE, "-L: the label has {} bytes, 64 fit", a.label.len());
    }
    let least = VOLUME_MIN * BLOCK as u64;
    if let Some(size) = a.size.filter(|s| *s < least) {
        fail!(code::USAGE, "-s: {} is too small for a volume; the least is {}", show::size(size), show::size(least));
    }
    let device = open(a, &name)?;
    let size = a.size.unwrap_or(device.len());
    if size > device.len() {
        fail!(code::USAGE, "-s: {} is more than {name} has ({})", show::size(size), show::size(device.len()));
    }
    if size < least {
        let fix = if device.is_block_device() {
            String::new()
        } else {
            format!("; make it larger: mkfs.vexfs -s SIZE {name}")
        };
        fail!(
            code::USAGE,
            "{name}: {} is too small for a volume, the least is {}{fix}",
            show::size(size),
            show::size(least)
        );
    }
    // SAFETY: these calls cannot fail.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    let options = MakeOptions {
        size: Some(size),
        label: a.label.clone(),
        uuid: a.uuid,
        copies: if a.metadata == Metadata::Dup { 2 } else { 1 },
        uid,
        gid,
        mode: 0o755,
    };
    let make_it = || -> io::Result<[u8; 16]> {
        if probe::contents(&device)?.is_some() {
            // What other filesystems keep near the end; make() clears what they keep near the start.
            let tail = (device.len() % (1 << 17) + (1 << 17)).min(device.len());
            device.write_at(device.len() - tail, &vec![0; tail as usize])?;
        }
        make(&device, &options)
    };
    let uuid = make_it().map_err(|e| Failure::io(&name, &e))?;
    let blocks = size / BLOCK as u64;
    if a.json {
        let text = json!({
            "target": name, "uuid": show_uuid(&uuid), "label": a.label, "blocks": blocks, "block_size": BLOCK,
            "metadata_copies": options.copies,
        });
        return show::line(text);
    }
    if a.quiet {
        return Ok(());
    }
    let copies = if options.copies == 2 { "metadata kept twice" } else { "metadata kept once" };
    show::line(format!("{name}: VexFS of {}, {copies}, UUID {}", show::size(blocks * BLOCK as u64), show_uuid(&uuid)))
}

/// Makes an image file that is not there yet; nothing stays behind if that fails.
fn create(path: &std::path::Path, size: u64) -> Done<FileDevice> {
    FileDevice::create(path, size).map_err(|e| {
        if std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == 0) {
            let _ = std::fs::remove_file(path);
        }
        e.into()
    })
}

/// Opens the target, which must be free and, without -f, empty.
fn open(a: &Mkfs, name: &str) -> Done<FileDevice> {
    let meta = match std::fs::metadata(&a.target) {
        Ok(m) => Some(m),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(Failure::io(name, &e)),
    };
    let Some(meta) = meta else {
        return match a.size {
            Some(size) => Ok(create(&a.target, size)?),
            None => {
                fail!(code::NOT_FOUND, "{name}: no such file; to make an image give its size: mkfs.vexfs -s 1G {name}")
            }
        };
    };
    let partitions = probe::partitions(&a.target);
    if partitions > 0 {
        fail!(
            code::BUSY,
            "{name}: is a whole disk with {partitions} partitions; give one of them, or remove them first (wipefs -a {name})"
        );
    }
    let device = FileDevice::open(&a.target, Access::ReadWrite)?;
    if !a.force {
        let known = probe::contents(&device).map_err(|e| Failure::io(name, &e))?;
        if let Some(what) = known {
            fail!(code::EXISTS, "{name}: holds {what}; to overwrite it, which loses all that is on it, use -f");
        }
        if meta.is_file() && probe::has_data(&a.target).map_err(|e| Failure::io(name, &e))? {
            fail!(code::EXISTS, "{name}: is a file with contents; to overwrite them use -f");
        }
    }
    match a.size {
        Some(size) if size > device.len() && !meta.file_type().is_block_device() => {
            drop(device);
            Ok(FileDevice::create(&a.target, size)?)
        }
        _ => Ok(device),
    }
}
