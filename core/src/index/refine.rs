// SPDX-License-Identifier: GPL-2.0-only
//! From rough to exact: what a search found by rough keys is measured with the canonical kernel, as much of it as codes may
//! have put in the wrong order. Owns the memory of a search over rough keys; promises that what it gives was measured.

use super::{Heap, Near as Exact, Probe, View};
use crate::dist::{Batch, Meter, Pairs, BATCH};
use crate::mem::{self, NoMemory};
use alloc::vec::Vec;

/// At least so many candidates more than results are measured with the canonical kernel.
const RERANK_MORE: usize = 10;
/// Candidates found by codes are measured until the next is farther than the results by so many mean errors.
const ERRORS_AHEAD: u32 = 2;
/// Codes are of no use where the nearest candidates differ by less than so many mean errors.
const ERRORS_SPREAD: u32 = 10;
/// Fewer candidates do not show that.
const PAIRS_MIN: usize = 10;

/// A candidate: rough key of the distance, slot.
pub(super) type Near = (u32, u32);

/// A candidate as one number that orders as the pair does.
pub(super) fn pack(near: Near) -> u64 {
    u64::from(near.0) << 32 | u64::from(near.1)
}

pub(super) fn unpack(x: u64) -> Near {
    ((x >> 32) as u32, x as u32)
}

/// Memory of a search.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// Candidates of a graph to expand, as a min-heap (complements).
    pub(super) candidates: Heap<u64>,
    /// The nearest, as a max-heap.
    pub(super) found: Heap<u64>,
    /// Those of them that were measured with the canonical kernel.
    exact: Vec<Exact>,
    /// Codes of the query.
    pub(super) query: Vec<u32>,
}

impl Walk {
    pub(crate) const fn new() -> Walk {
        Walk { candidates: Heap::new(), found: Heap::new(), exact: Vec::new(), query: Vec::new() }
    }

    pub(crate) fn memory(&self) -> usize {
        let heaps = self.candidates.memory().saturating_add(self.found.memory());
        let exact = self.exact.capacity().saturating_mul(core::mem::size_of::<Exact>());
        heaps.saturating_add(exact).saturating_add(self.query.capacity().saturating_mul(4))
    }
}

/// How many of the nearest by rough keys are measured in any case, for `k` results.
pub(super) fn most(k: usize) -> usize {
    k.saturating_mul(2).max(k.saturating_add(RERANK_MORE))
}

/// Measures the nearest `most` of what was found with the canonical kernel, into `found`. If it was found by codes: more,
/// until the rest is farther than the results by more than codes err. False: codes do not tell these vectors apart.
#[allow(clippy::too_many_arguments)] // the state of one search
#[inline(never)] // keeps stack frames small
pub(super) fn rerank(
    view: &View<'_>,
    probe: &Probe<'_, '_>,
    meter: &mut Meter<'_>,
    walk: &mut Walk,
    most: usize,
    coded: bool,
    found: &mut Heap<Exact>,
) -> Result<bool, NoMemory> {
    walk.exact.clear();
    let mut pairs = Pairs::default();
    let mut rest = walk.found.sorted();
    // Those that are measured in any case are brought in together.
    for x in rest.iter().take(most) {
        let _ = view.row(unpack(*x).1);
    }
    if view.absent.any() {
        return Ok(true);
    }
    while let Some(ahead) = rest.first().map(|x| unpack(*x).0) {
        let done = walk.exact.len();
        let mut n = BATCH;
        if done < most {
            n = n.min(most.wrapping_sub(done));
        } else if !coded {
            break;
        } else {
            mem::sort_by(&mut walk.exact, |a, b| a < b);
            let worst = probe.k.checked_sub(1).and_then(|k| walk.exact.get(k));
            if worst.is_none_or(|w| meter.kernels().apart(&pairs, w.0, ahead, ERRORS_AHEAD)) {
                break;
            }
        }
        let (some, others) = rest.split_at_checked(n.min(rest.len())).unwrap_or((rest, &[]));
        rest = others;
        remeasure(view, probe, meter, some, &mut pairs, &mut walk.exact)?;
        if view.absent.any() {
            return Ok(true);
        }
        if done == 0 && coded && !tells_apart(meter, &pairs) {
            return Ok(false);
        }
    }
    found.clear();
    for near in &walk.exact {
        found.push(*near)?;
    }
    Ok(true)
}

/// Whether codes tell near vectors apart, as far as these pairs show.
pub(super) fn tells_apart(meter: &Meter<'_>, pairs: &Pairs) -> bool {
    pairs.len() < PAIRS_MIN || meter.kernels().apart(pairs, 0, 0, ERRORS_SPREAD)
}

/// Measures a batch with the canonical kernel; notes the rough keys beside the true ones if there are none yet.
#[inline(never)] // keeps stack frames small
fn remeasure(
    view: &View<'_>,
    probe: &Probe<'_, '_>,
    meter: &mut Meter<'_>,
    some: &[u64],
    pairs: &mut Pairs,
    exact: &mut Vec<Exact>,
) -> Result<(), NoMemory> {
    let mut batch = Batch::new(view.store.dim());
    let mut near = [(0, 0); BATCH];
    let mut keys = [u64::MAX; BATCH];
    for x in some {
        let (rough, slot) = unpack(*x);
        if let (Some((words, inv_norm)), Some(place)) = (view.row(slot), near.get_mut(batch.len())) {
            if batch.push(words, inv_norm) {
                mem::prefetch(words);
                *place = (rough, slot);
            }
        }
    }
    meter.many(probe.query, &batch, &mut keys);
    let first = pairs.is_empty();
    for ((rough, slot), key) in near.iter().zip(keys).take(batch.len()) {
        mem::push(exact, (key, *slot))?;
        if first {
            pairs.push(*rough, key);
        }
    }
    Ok(())
}
