// SPDX-License-Identifier: GPL-2.0-only
//! Makes volumes: draws what has to be random and writes what the core gives.

use crate::device::Device;
use crate::host::HostOptions;
use std::io;
use vexfs_core::engine::{mkfs, FormatOptions};
use vexfs_core::format::BLOCK;

/// How to make a volume; the size is the device's.
#[derive(Clone, Debug)]
pub struct MakeOptions {
    /// Size in bytes; `None` takes the whole device.
    pub size: Option<u64>,
    /// Label, at most 64 bytes of UTF-8.
    pub label: String,
    /// Identity; `None` draws one.
    pub uuid: Option<[u8; 16]>,
    /// Copies of metadata, 1 or 2.
    pub copies: u32,
    /// Owner of the root directory.
    pub uid: u32,
    /// Group of the root directory.
    pub gid: u32,
    /// Permission bits of the root directory.
    pub mode: u32,
}

impl Default for MakeOptions {
    fn default() -> MakeOptions {
        MakeOptions { size: None, label: String::new(), uuid: None, copies: 2, uid: 0, gid: 0, mode: 0o755 }
    }
}

/// Random bytes from the kernel.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut b = [0; N];
    let mut at = 0;
    while at < N {
        // SAFETY: the rest of the array is valid for writing.
        let n = unsafe { libc::getrandom(b[at..].as_mut_ptr().cast(), N - at, 0) };
        if n > 0 {
            at += n as usize;
        } else if io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(b)
}

/// Makes a volume on `device`; what was there is lost. Gives back its identity.
pub fn make(device: &dyn Device, options: &MakeOptions) -> io::Result<[u8; 16]> {
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text.to_string());
    let mut label = [0; 64];
    let bytes = options.label.as_bytes();
    label.get_mut(..bytes.len()).ok_or_else(|| invalid("the label is longer than 64 bytes"))?.copy_from_slice(bytes);
    let uuid = match options.uuid {
        Some(u) => u,
        None => {
            let mut u: [u8; 16] = random()?;
            // A random UUID, version 4.
            u[6] = u[6] & 0x0f | 0x40;
            u[8] = u[8] & 0x3f | 0x80;
            u
        }
    };
    let size = options.size.unwrap_or(device.len()).min(device.len());
    let format = FormatOptions {
        blocks: size / BLOCK as u64,
        copies: options.copies,
        uuid,
        hash_key: random()?,
        label,
        uid: options.uid,
        gid: options.gid,
        mode: options.mode,
    };
    let writes =
        mkfs(crate::env(&HostOptions::default()), &format, crate::now()).map_err(|e| io::Error::other(e.message()))?;
    for (block, bytes) in &writes {
        device.write_at(block * BLOCK as u64, bytes)?;
    }
    device.flush()?;
    Ok(uuid)
}
