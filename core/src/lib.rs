// SPDX-License-Identifier: GPL-2.0-only
//! The VexFS core: everything that a volume is, and nothing that touches the world.
//!
//! A [`Volume`](engine::Volume) is a state machine. Operations, completions of I/O and time go in;
//! I/O requests and replies come out. It does no I/O, reads no clock, spawns nothing, draws no
//! random number; four drivers (embedded, FUSE, kernel, simulator) run this same code. See DESIGN.md.
#![no_std]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::todo,
    clippy::unimplemented,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::string_slice,
    clippy::float_arithmetic
)]
#![warn(clippy::incompatible_msrv)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::float_arithmetic
    )
)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod check;
pub mod checksum;
pub mod cluster;
pub mod coll;
pub mod data;
pub mod dist;
pub mod engine;
pub mod env;
pub mod error;
pub mod filter;
pub mod format;
pub mod index;
pub mod io;
pub mod mem;
pub mod ns;
pub mod op;
pub mod proto;
mod sync;
pub mod tree;
pub mod txn;

pub use error::{Error, Need, Step, Stop};
