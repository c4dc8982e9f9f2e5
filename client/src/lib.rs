// SPDX-License-Identifier: MIT OR Apache-2.0
//! Speaks to a VexFS volume: makes collections, inserts records, searches them, gives files their embeddings.
//!
//! Every directory of a mounted volume has a control file, `.vexfs`, that is found by name and never listed.
//! [`Client::open`] opens the one of a directory; requests written to it are about that directory and
//! run with the rights of who opened it. There is one request under way at a time in a session; for
//! parallel work open several.
//!
//! ```no_run
//! use vexfs_client::{Client, Insert, Schema, Search};
//!
//! # fn main() -> Result<(), vexfs_client::Error> {
//! std::fs::create_dir("/mnt/vex/notes")?;
//! let mut notes = Client::open("/mnt/vex/notes")?;
//! notes.create(&Schema::new(3, "cosine".parse()?, "hnsw".parse()?))?;
//! notes.insert(&Insert { dim: 3, vectors: &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0], durable: true, ..Insert::default() })?;
//! let found = notes.search(&Search { dim: 3, queries: &[0.9, 0.1, 0.0], k: 1, ..Search::default() })?;
//! assert_eq!(found.queries[0].hits[0].id, 0);
//! # Ok(())
//! # }
//! ```
//!
//! Where the volume is not mounted, another [`Transport`] carries the same frames. The byte layout is in
//! [`wire`], the very file that the volume's own code is compiled from; `include/vexfs.h` has it for C.
//!
//! Owns: the encoding of requests and the decoding of replies. Promises: vectors travel as their bits; a reply is
//! checked wholly before anything in it is believed.

// One call of ioctl(2) is all that is not safe, see `transport`.
#![deny(unsafe_code)]

mod attrs;
mod client;
mod error;
mod frame;
mod transport;
mod types;
#[path = "../../core/src/proto/wire.rs"]
pub mod wire;

pub use attrs::{AttrValue, Attrs};
pub use client::Client;
pub use error::{Error, Refused};
pub use transport::{ControlFile, Transport};
pub use types::*;
