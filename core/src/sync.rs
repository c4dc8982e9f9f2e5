// SPDX-License-Identifier: GPL-2.0-only
//! The one door to what threads share inside the core: atomics only, as the driver's lock is what readers and writers of a
//! volume meet at. With `--cfg loom` it gives loom's, which runs a test through every order that threads could take.

#[cfg(not(loom))]
pub use core::sync::atomic;
#[cfg(loom)]
pub use loom::sync::atomic;
