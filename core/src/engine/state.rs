// SPDX-License-Identifier: GPL-2.0-only
//! What operations see of a volume: tree, collections, facts. The shared part of the engine: it
//! implements [`Base`], so that reads can run over it from many threads.

use crate::coll::Collection;
use crate::env::Env;
use crate::error::{Need, Step, Stop};
use crate::format::Key;
use crate::mem::Map;
use crate::tree::Tree;
use crate::txn::{Base, VolumeInfo};

/// Tree, loaded collections and facts.
pub struct View {
    pub(super) env: Env,
    pub(super) tree: Tree,
    pub(super) collections: Map<crate::mem::Box<Collection>>,
    pub(super) info: VolumeInfo,
}

impl Base for View {
    fn get(&self, key: &Key) -> Step<Option<&[u8]>> {
        self.tree.get(key)
    }
    fn next(&self, from: &Key, to: &Key) -> Step<Option<(Key, &[u8])>> {
        self.tree.next(from, to)
    }
    fn prev(&self, from: &Key, to: &Key) -> Step<Option<(Key, &[u8])>> {
        self.tree.prev(from, to)
    }
    fn collection(&self, ino: u64) -> Step<&Collection> {
        self.collections.get(ino).map(|c| &**c).ok_or(Stop::Need(Need::Collection(ino)))
    }
    fn info(&self) -> &VolumeInfo {
        &self.info
    }
    fn env(&self) -> &Env {
        &self.env
    }
}
