// SPDX-License-Identifier: GPL-2.0-only
//! K-means (Lloyd 1982) in bounded steps over a sample of the slots, for the coarse quantiser of ivf and the
//! codebooks of pq. Owns matrices of centroids; promises the same ones for the same seed and sample.

use super::{Scratch, View};
use crate::cluster::PANEL;
use crate::dist::{Distance, Metric};
use crate::mem::{self, NoMemory};
use alloc::vec::Vec;

/// Rounds of Lloyd's algorithm.
const ROUNDS: u32 = 6;
/// Multiplications that one unit of a maintenance budget pays for, about as many as an insert into a graph makes.
pub(super) const UNIT: usize = 1 << 18;
/// Multiplications of one call of the leaf: the time that a kernel does not preempt.
const CALL: usize = 1 << 16;

/// Finaliser of splitmix64, over a seed and a number.
pub(super) fn hash(seed: u64, n: u64) -> u64 {
    let x = seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Factor for a vector's elements: clusters of cosine are clusters of directions.
pub(super) fn scale(metric: Metric, inv_norm: u64) -> u64 {
    if metric == Metric::Cosine {
        inv_norm
    } else {
        0
    }
}

/// A matrix in panels (see `vexfs_fp`), with a number for each column: half its squared norm.
#[derive(Debug, Default)]
pub(super) struct Matrix {
    dim: usize,
    columns: usize,
    pub(super) panels: Vec<u32>,
    pub(super) bias: Vec<u32>,
}

impl Matrix {
    /// A matrix of zeros.
    pub(super) fn new(dim: usize, columns: usize) -> Result<Matrix, NoMemory> {
        let padded = columns.checked_next_multiple_of(PANEL).ok_or(NoMemory)?;
        let words = padded.checked_mul(dim).ok_or(NoMemory)?;
        Ok(Matrix { dim, columns, panels: mem::filled(words, 0)?, bias: mem::filled(padded, 0)? })
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Number of words that are stored for it, and how many of them belong to one panel.
    pub(super) fn words(dim: usize, columns: usize) -> Option<usize> {
        columns.checked_next_multiple_of(PANEL)?.checked_mul(dim.checked_add(1)?)
    }

    fn panel_words(&self) -> usize {
        self.dim.saturating_mul(PANEL).max(1)
    }

    /// Keys of all columns into `keys` (emptied first).
    #[inline(never)] // keeps stack frames small
    pub(super) fn keys(
        &self,
        kernels: &dyn Distance,
        x: &[u32],
        scale: u64,
        bias: bool,
        keys: &mut Vec<u32>,
    ) -> Result<(), NoMemory> {
        keys.clear();
        mem::resize(keys, self.bias.len(), u32::MAX)?;
        let some = CALL.checked_div(self.panel_words()).unwrap_or(0).max(1);
        let words = self.panel_words().saturating_mul(some).max(1);
        let part = some.saturating_mul(PANEL).max(1);
        for ((out, m), b) in keys.chunks_mut(part).zip(self.panels.chunks(words)).zip(self.bias.chunks(part)) {
            kernels.project(x, scale, m, if bias { b } else { &[] }, out);
        }
        keys.truncate(self.columns);
        Ok(())
    }

    /// The nearest column.
    pub(super) fn nearest(
        &self,
        kernels: &dyn Distance,
        x: &[u32],
        scale: u64,
        keys: &mut Vec<u32>,
    ) -> Result<u32, NoMemory> {
        self.keys(kernels, x, scale, true, keys)?;
        // Two passes: the first one is done in registers.
        let least = keys.iter().fold(u32::MAX, |a, b| a.min(*b));
        Ok(keys.iter().position(|k| *k == least).unwrap_or(0) as u32)
    }

    /// Column `column` becomes `sums / count`.
    pub(super) fn set(&mut self, kernels: &dyn Distance, column: usize, sums: &[u32], count: u32) {
        let at = (column / PANEL).saturating_mul(self.panel_words());
        let end = at.saturating_add(self.panel_words());
        if let (Some(p), Some(b)) = (self.panels.get_mut(at..end), self.bias.get_mut(column)) {
            *b = kernels.centroid(sums, count, p, column % PANEL);
        }
    }

    /// Appends its bytes.
    pub(super) fn put(&self, out: &mut Vec<u8>) -> Result<(), NoMemory> {
        mem::reserve(out, self.panels.len().saturating_add(self.bias.len()).saturating_mul(4))?;
        for w in self.panels.iter().chain(&self.bias) {
            mem::extend(out, &w.to_le_bytes())?;
        }
        Ok(())
    }

    /// Reads what `put` gave; `None` if a number is none.
    pub(super) fn read(dim: usize, columns: usize, bytes: &[u8]) -> Result<Option<Matrix>, NoMemory> {
        if Matrix::words(dim, columns).and_then(|w| w.checked_mul(4)) != Some(bytes.len()) {
            return Ok(None);
        }
        let mut m = Matrix::new(dim, columns)?;
        for (to, b) in m.panels.iter_mut().chain(&mut m.bias).zip(bytes.chunks_exact(4)) {
            *to = u32::from_le_bytes(b.try_into().unwrap_or([0xff; 4]));
            if *to & 0x7f80_0000 == 0x7f80_0000 {
                return Ok(None);
            }
        }
        Ok(Some(m))
    }

    pub(super) fn memory(&self) -> usize {
        self.panels.capacity().saturating_add(self.bias.capacity()).saturating_mul(4)
    }
}

/// `n` of the `members` slots that `is_member` names, evenly spread over `slots`.
pub(super) fn sample(
    slots: usize,
    members: usize,
    n: usize,
    is_member: impl Fn(u32) -> bool,
) -> Result<Vec<u32>, NoMemory> {
    let mut out = Vec::new();
    mem::reserve(&mut out, n.min(members))?;
    let mut due = 0usize;
    for slot in (0..slots as u32).filter(|s| is_member(*s)) {
        due = due.saturating_add(n);
        if due >= members {
            due = due.saturating_sub(members);
            mem::push(&mut out, slot)?;
        }
    }
    Ok(out)
}

/// A training under way: one matrix for each part of the vectors, one after the other.
#[derive(Debug)]
pub(super) struct Training {
    seed: u64,
    /// Where each part begins, and the dimension at the end.
    bounds: Vec<u32>,
    columns: usize,
    sample: Vec<u32>,
    done: Vec<Matrix>,
    now: Matrix,
    round: u32,
    cursor: usize,
    sums: Vec<u32>,
    counts: Vec<u32>,
}

impl Training {
    /// Begins; `bounds` are the limits of the parts.
    pub(super) fn new(seed: u64, bounds: Vec<u32>, columns: usize, sample: Vec<u32>) -> Training {
        Training {
            seed,
            bounds,
            columns: columns.max(1),
            sample,
            done: Vec::new(),
            now: Matrix::default(),
            round: 0,
            cursor: 0,
            sums: Vec::new(),
            counts: Vec::new(),
        }
    }

    /// First element and length of the part in training.
    fn part(&self) -> Option<(usize, usize)> {
        let at = self.done.len();
        let (from, to) = (*self.bounds.get(at)?, *self.bounds.get(at.checked_add(1)?)?);
        Some((from as usize, to.checked_sub(from)? as usize))
    }

    /// Goes on for `budget` units. The matrices, when all are done.
    #[inline(never)] // keeps stack frames small
    pub(super) fn step(
        &mut self,
        view: &View<'_>,
        kernels: &dyn Distance,
        s: &mut Scratch,
        budget: usize,
    ) -> Result<Option<Vec<Matrix>>, NoMemory> {
        let mut left = budget.max(1).saturating_mul(UNIT);
        loop {
            let Some((from, dim)) = self.part() else { return Ok(Some(core::mem::take(&mut self.done))) };
            let whole = self.columns.saturating_mul(dim);
            if self.round == 0 {
                self.begin(view, kernels, from, dim)?;
                left = left.saturating_sub(whole);
            }
            while self.cursor < self.sample.len() {
                if left == 0 {
                    return Ok(None);
                }
                self.assign(view, kernels, s, from, dim)?;
                left = left.saturating_sub(whole);
            }
            self.settle(view, kernels, from, dim)?;
            left = left.saturating_sub(whole);
            if self.round > ROUNDS {
                mem::push(&mut self.done, core::mem::take(&mut self.now))?;
                self.round = 0;
            }
            if left == 0 {
                return Ok(None);
            }
        }
    }

    /// The elements of the part of a sampled vector.
    fn piece<'a>(&self, view: &View<'a>, at: usize, from: usize, dim: usize) -> Option<(&'a [u32], u64)> {
        let (words, inv_norm) = view.row(*self.sample.get(at)?)?;
        Some((words.get(from..from.checked_add(dim)?)?, scale(view.metric, inv_norm)))
    }

    /// Centroid `c` becomes a sampled vector.
    fn plant(&mut self, view: &View<'_>, kernels: &dyn Distance, c: usize, at: usize, from: usize, dim: usize) {
        let start = c.saturating_mul(dim);
        let Some((x, scale)) = self.piece(view, at, from, dim) else { return };
        if let Some(sums) = self.sums.get_mut(start..start.saturating_add(dim)) {
            sums.fill(0);
            kernels.accumulate(x, scale, sums);
            self.now.set(kernels, c, sums, 1);
        }
    }

    /// First centroids: vectors of the sample, one from each stretch of it.
    #[inline(never)] // keeps stack frames small
    fn begin(&mut self, view: &View<'_>, kernels: &dyn Distance, from: usize, dim: usize) -> Result<(), NoMemory> {
        let words = self.columns.checked_mul(dim).ok_or(NoMemory)?;
        self.now = Matrix::new(dim, self.columns)?;
        self.sums.clear();
        mem::resize(&mut self.sums, words, 0)?;
        self.counts.clear();
        mem::resize(&mut self.counts, self.columns, 0)?;
        let n = self.sample.len();
        for c in 0..self.columns {
            let start = c.saturating_mul(n).checked_div(self.columns).unwrap_or(0);
            let stretch = n.checked_div(self.columns).unwrap_or(0).max(1) as u64;
            let off = hash(self.seed ^ from as u64, c as u64).checked_rem(stretch).unwrap_or(0) as usize;
            self.plant(view, kernels, c, start.saturating_add(off), from, dim);
        }
        // Otherwise all of it once more.
        view.absent.none()?;
        self.sums.fill(0);
        self.round = 1;
        self.cursor = 0;
        Ok(())
    }

    /// The next vector of the sample goes to its centroid.
    fn assign(
        &mut self,
        view: &View<'_>,
        kernels: &dyn Distance,
        s: &mut Scratch,
        from: usize,
        dim: usize,
    ) -> Result<(), NoMemory> {
        let piece = self.piece(view, self.cursor, from, dim);
        if piece.is_none() {
            // The sample goes up through the slots: the next ones will be wanted as well.
            let ahead = self.sample.get(self.cursor..).unwrap_or(&[]);
            for slot in ahead.iter().take_while(|_| !view.absent.is_full()) {
                let _ = view.row(*slot);
            }
        }
        view.absent.none()?;
        if let Some((x, scale)) = piece {
            let c = self.now.nearest(kernels, x, scale, &mut s.keys)? as usize;
            let start = c.saturating_mul(dim);
            if let (Some(sums), Some(n)) = (self.sums.get_mut(start..start.saturating_add(dim)), self.counts.get_mut(c))
            {
                kernels.accumulate(x, scale, sums);
                *n = n.saturating_add(1);
            }
        }
        self.cursor = self.cursor.saturating_add(1);
        Ok(())
    }

    /// Ends a round: centroids move to the mean of what is nearest to them; one without anything begins anew.
    #[inline(never)] // keeps stack frames small
    fn settle(&mut self, view: &View<'_>, kernels: &dyn Distance, from: usize, dim: usize) -> Result<(), NoMemory> {
        for c in 0..self.columns {
            let start = c.saturating_mul(dim);
            let n = self.counts.get(c).copied().unwrap_or(0);
            if n > 0 {
                if let Some(sums) = self.sums.get(start..start.saturating_add(dim)) {
                    self.now.set(kernels, c, sums, n);
                }
            } else if self.round < ROUNDS {
                let draw = hash(self.seed ^ u64::from(self.round), c as u64);
                let at = draw.checked_rem(self.sample.len() as u64).unwrap_or(0) as usize;
                self.plant(view, kernels, c, at, from, dim);
            }
        }
        // Doing it once more gives the same.
        view.absent.none()?;
        self.sums.fill(0);
        self.counts.fill(0);
        self.cursor = 0;
        self.round = self.round.saturating_add(1);
        Ok(())
    }

    pub(super) fn memory(&self) -> usize {
        let words = self.sample.capacity().saturating_add(self.sums.capacity()).saturating_add(self.counts.capacity());
        let done = self.done.iter().fold(self.now.memory(), |n, m| n.saturating_add(m.memory()));
        words.saturating_mul(4).saturating_add(done)
    }
}
