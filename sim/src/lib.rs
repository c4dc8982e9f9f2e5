// SPDX-License-Identifier: GPL-2.0-only
//! VexFS in a deterministic world. One seed decides what the volume is, what is done to it, in which order the
//! disk works, which faults strike and when the power goes; a model of the volume is the judge. See
//! `cargo run -p sim -- --help`.
//!
//! | module | owns |
//! |---|---|
//! | [`world`] | a run: it drives the engine, injects faults, crashes and recovers |
//! | [`disk`] | the virtual disk with its volatile cache |
//! | [`alloc`] | allocations that fail |
//! | [`swarm`] | what a seed switches on and off |
//! | [`gen`], [`act`] | operations |
//! | [`model`], [`vectors`], [`frames`] | what a volume must contain and answer |
//! | [`oracle`] | reading back, and which moments of the history a crash may leave |
//! | [`canary`] | worlds that are broken on purpose |
//! | [`runner`], [`tally`] | many seeds, the summary, shrinking |

pub mod act;
pub mod alloc;
pub mod canary;
pub mod disk;
pub mod format;
pub mod frames;
pub mod gen;
pub mod model;
pub mod oracle;
pub mod rng;
pub mod runner;
pub mod swarm;
pub mod tally;
pub mod trace;
pub mod vectors;
pub mod world;
