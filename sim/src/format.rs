// SPDX-License-Identifier: GPL-2.0-only
//! What the simulator has to know of the format: how to make a volume, how to check one, and which blocks are
//! copies of metadata.

use crate::disk::Disk;
use crate::oracle::Res;
use crate::rng::Rng;
use crate::swarm::Config;
use vexfs_core::check::{Check, Mode, Options, Place};
use vexfs_core::engine::{mkfs, FormatOptions};
use vexfs_core::env::Env;
use vexfs_core::format::{LogHead, NodeHead, Super, LOG_MAGIC, NODE_MAGIC, SUPER_MAGIC, SUPER_SLOTS};
use vexfs_core::io::IoKind;
use vexfs_core::mem::Buf;
use vexfs_core::op::Time;

/// Makes a volume: blocks to write.
pub fn make(cfg: &Config, rng: &mut Rng, env: Env, now: Time) -> Res<Vec<(u64, Buf)>> {
    let mut bytes = || <[u8; 16]>::try_from(rng.bytes(16)).unwrap_or_default();
    let o = FormatOptions {
        blocks: cfg.blocks,
        copies: cfg.copies,
        uuid: bytes(),
        hash_key: bytes(),
        label: [0; 64],
        uid: 0,
        gid: 0,
        mode: 0o755,
    };
    mkfs(env, &o, now).map_err(|e| format!("mkfs: {e}"))
}

/// Runs the checker over a recovered volume: it must find nothing but what the simulator damaged itself.
pub fn check(disk: &Disk, env: Env, damaged: bool) -> Res<()> {
    let mut check = Check::new(env, disk.blocks(), Options { mode: Mode::Look, metadata_only: damaged });
    let mut wrote = false;
    let result = check.run(&mut |io| {
        if io.kind == IoKind::Read {
            disk.read(io.block, &mut io.buf);
        } else {
            wrote = true;
        }
        Ok(())
    });
    if wrote {
        return Err("the checker writes although it was only to look".into());
    }
    result.map_err(|e| format!("the checker ended with an error: {e}"))?;
    let errors: Vec<String> = check
        .findings()
        .iter()
        .filter(|f| f.is_error() && !(damaged && matches!(f.place, Place::Node(_) | Place::Super(_) | Place::Log(_))))
        .take(5)
        .map(ToString::to_string)
        .collect();
    if errors.is_empty() {
        Ok(())
    } else {
        let supers: Vec<(u64, u64)> = SUPER_SLOTS
            .iter()
            .flatten()
            .filter_map(|b| Some((*b, Super::parse(&disk.get(*b)?[..])?.generation)))
            .collect();
        Err(format!(
            "the checker finds after recovery: {}; superblocks (block, generation): {supers:?}",
            errors.join("; ")
        ))
    }
}

/// Of a block that is a copy of metadata which exists twice: which of the two.
pub fn copy_of(disk: &Disk, block: u64) -> Option<u64> {
    let b = disk.get(block)?;
    let n = NodeHead::parse(&b[..])?;
    if n.magic == NODE_MAGIC && n.twin != 0 {
        return Some(u64::from(block == n.twin));
    }
    let l = LogHead::parse(&b[..])?;
    if l.magic == LOG_MAGIC && l.twin != 0 {
        return Some(u64::from(block == l.twin));
    }
    let s = Super::parse(&b[..])?;
    if s.magic == SUPER_MAGIC {
        return Some(u64::from(s.slot));
    }
    None
}
