// SPDX-License-Identifier: GPL-2.0-only
//! What the programs `mkfs.vexfs`, `fsck.vexfs` and `vexfs` are made of: the definitions of their command lines
//! ([`args`]), the commands ([`cmd`], [`mkfs`], [`fsck`]), and what they share.

pub mod args;
pub mod cmd;
pub mod data;
pub mod fail;
pub mod fsck;
pub mod mkfs;
pub mod place;
pub mod probe;
pub mod session;
pub mod show;
