// SPDX-License-Identifier: GPL-2.0-only
//! The embedded driver: what the core needs from an ordinary Linux process. It opens image files and block
//! devices ([`device`]), drives a volume from many threads ([`host`]), walks paths without a mount
//! ([`path`]), and supplies the environment ([`env`](fn@env)). The FUSE daemon, the tools, the benches and the fuzzers
//! are built on it. [`testing`] has a device that loses power.

pub mod device;
pub mod host;
pub mod path;
pub mod testing;

mod crc;
mod error;
mod make;
mod sync;

pub use crc::crc32c;
pub use device::{Access, Device, FileDevice, MemDevice};
pub use error::{OpenError, OpenErrorKind};
pub use host::{Host, HostOptions};
pub use make::{make, random, MakeOptions};
pub use path::{Files, FilesError};

use std::sync::OnceLock;
use vexfs_core::dist::Native;
use vexfs_core::env::Env;
use vexfs_core::op::Time;

/// The environment of a volume in this process: the fastest checksum and distance kernels of this processor.
pub fn env(options: &HostOptions) -> Env {
    static KERNELS: OnceLock<Native> = OnceLock::new();
    Env {
        crc32c: crc::crc32c,
        distance: KERNELS.get_or_init(Native::best),
        cache_bytes: options.cache_bytes,
        log_bytes: options.log_bytes,
    }
}

/// The wall-clock time. Under loom, which wants the same each time, it stands still.
pub fn now() -> Time {
    if cfg!(loom) {
        return Time { sec: 1_000_000_000, nsec: 0 };
    }
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is valid for writing; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut t) };
    Time { sec: t.tv_sec, nsec: t.tv_nsec as u32 }
}
