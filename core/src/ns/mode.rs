// SPDX-License-Identifier: GPL-2.0-only
//! Bits of an inode's mode, as in stat(2).

/// Mask of the type.
pub const TYPE: u32 = 0o170_000;
/// Named pipe.
pub const FIFO: u32 = 0o010_000;
/// Character device.
pub const CHR: u32 = 0o020_000;
/// Directory.
pub const DIR: u32 = 0o040_000;
/// Block device.
pub const BLK: u32 = 0o060_000;
/// Regular file.
pub const REG: u32 = 0o100_000;
/// Symbolic link.
pub const LNK: u32 = 0o120_000;
/// Socket.
pub const SOCK: u32 = 0o140_000;
/// Set-user-id.
pub const SETUID: u32 = 0o4000;
/// Set-group-id.
pub const SETGID: u32 = 0o2000;

/// Whether `mode` is a directory's.
pub fn is_dir(mode: u32) -> bool {
    mode & TYPE == DIR
}

/// Whether `mode` is a regular file's.
pub fn is_reg(mode: u32) -> bool {
    mode & TYPE == REG
}

/// Whether `mode` is a symbolic link's.
pub fn is_lnk(mode: u32) -> bool {
    mode & TYPE == LNK
}

/// Whether `kind` is a type that exists.
pub fn is_type(kind: u32) -> bool {
    matches!(kind, FIFO | CHR | DIR | BLK | REG | LNK | SOCK)
}

/// The type as in readdir(3).
pub fn dtype(mode: u32) -> u8 {
    ((mode & TYPE) >> 12) as u8
}
