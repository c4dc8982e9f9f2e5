// SPDX-License-Identifier: GPL-2.0-only
//! The FUSE driver: mounts a volume without a kernel module. [`mount`] opens the image, mounts it and
//! serves it until it is unmounted or the process is told to end (SIGTERM, SIGINT, SIGHUP); then the
//! volume is closed cleanly. A killed daemon (SIGKILL) loses nothing that a system call had acknowledged.
//!
//! What FUSE cannot carry: syncfs(2) never reaches the daemon, which therefore commits at least every
//! second; freezing, O_TMPFILE and the shutdown ioctl do not exist. On a read-only mount no file can be
//! opened for writing, the control file neither: searches send their requests by ioctl there. Access times (relatime, strictatime) are kept when a file is opened
//! for reading, and by reads that the kernel's cache cannot answer.

mod control;
mod convert;
mod daemon;
mod fs;
mod options;
mod pool;
mod shared;

pub use daemon::{mount, unmount, MountConfig, MountError};
pub use options::{Atime, MountOptions, OptionError, PowerCutOptions};
