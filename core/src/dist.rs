// SPDX-License-Identifier: GPL-2.0-only
//! Distances as order-preserving integers: the one door to the floating-point leaf, and the place where
//! distance evaluations are counted ([`Meter`]).
//!
//! A vector is a slice of f32 bits. A distance is a *key*: the bits of an f64, mapped so that keys compare
//! as the distances do. All paths of the leaf give the same keys, bit for bit (see `vexfs_fp`).
//!
//! For finding there are cheaper *rough* keys of 32 bits ([`Rough`]), from the vectors themselves or from codes of
//! a byte for each element, and lower bounds of the true keys ([`Distance::bounds`]). They are as reproducible, but
//! never reported.

use crate::error::Error;
use core::marker::PhantomData;

/// Metric of a collection. Smaller is nearer for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Metric {
    /// Squared Euclidean distance.
    L2 = 1,
    /// 1 − cosine similarity.
    Cosine = 2,
    /// − inner product.
    Ip = 3,
}

impl Metric {
    /// The metric of a schema's number.
    pub const fn from_u32(n: u32) -> Option<Metric> {
        match n {
            1 => Some(Metric::L2),
            2 => Some(Metric::Cosine),
            3 => Some(Metric::Ip),
            _ => None,
        }
    }
}

const SIGN: u64 = 1 << 63;

/// The f64 bits of the distance that `key` stands for.
pub const fn key_to_bits(key: u64) -> u64 {
    if key & SIGN != 0 {
        key ^ SIGN
    } else {
        !key
    }
}

/// The key of a distance that is given as f64 bits; −0.0 counts as 0.0. `None` for NaN.
pub const fn bits_to_key(bits: u64) -> Option<u64> {
    if bits & !SIGN > 0x7ff0_0000_0000_0000 {
        return None;
    }
    if bits == SIGN {
        return Some(SIGN);
    }
    Some(if bits & SIGN != 0 { !bits } else { bits ^ SIGN })
}

/// What [`Distance::check`] finds out about a vector that may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Norm {
    /// Bits of the f64 inverse Euclidean norm; 0 for the zero vector.
    pub inverse: u64,
    /// All elements are zero.
    pub zero: bool,
}

/// A query: a vector with what the metric needs to know of it.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// How to measure.
    pub metric: Metric,
    /// f32 bits.
    pub words: &'a [u32],
    /// Bits of the f64 inverse norm (cosine), else 0.
    pub inv_norm: u64,
}

/// A query for finding: a vector or its codes. What it is measured against is the same of the stored vectors.
#[derive(Clone, Copy, Debug)]
pub struct Rough<'a> {
    /// How to measure.
    pub metric: Metric,
    /// f32 bits, or codes.
    pub words: &'a [u32],
    /// Of a vector: its inverse norm as in [`Query`].
    pub inv_norm: u64,
    /// Whether these are codes.
    pub coded: bool,
}

impl<'a> From<&Query<'a>> for Rough<'a> {
    fn from(q: &Query<'a>) -> Rough<'a> {
        Rough { metric: q.metric, words: q.words, inv_norm: q.inv_norm, coded: false }
    }
}

/// Words of the codes of a vector with `dim` elements, and of what the leaf keeps with them.
pub const fn code_words(dim: usize) -> usize {
    // A dimension is at most 65,536.
    dim.next_multiple_of(vexfs_fp::CODES_ALIGN).wrapping_add(vexfs_fp::TERMS_SIZE) / 4
}

/// With fewer elements the vectors themselves are as fast as codes, and codes too poor.
pub const CODED_DIM_MIN: usize = 48;

/// Whether codes are a poor likeness of their vector, as [`Distance::encode`] said when it made them.
pub fn is_coarse(codes: &[u32]) -> bool {
    // The last of the words that the leaf keeps with them.
    codes.last().is_some_and(|w| *w != 0)
}

/// Most rows of a [`Batch`].
pub const BATCH: usize = 16;

/// Stored vectors to measure in one call of the kernels, so that the cost of an FPU section is shared.
pub struct Batch<'a> {
    rows: [vexfs_fp::Row; BATCH],
    len: usize,
    dim: usize,
    borrow: PhantomData<&'a [u32]>,
}

impl<'a> Batch<'a> {
    /// An empty batch of vectors of `dim` elements.
    pub const fn new(dim: usize) -> Batch<'a> {
        let none = vexfs_fp::Row { words: core::ptr::null(), inv_norm: 0 };
        Batch { rows: [none; BATCH], len: 0, dim, borrow: PhantomData }
    }

    /// Adds a vector with its inverse norm (f64 bits; 0 unless cosine). False: it is full, or the
    /// vector has another dimension; it was not added.
    pub fn push(&mut self, words: &'a [u32], inv_norm: u64) -> bool {
        if words.len() != self.dim {
            return false;
        }
        match self.rows.get_mut(self.len) {
            Some(row) => {
                *row = vexfs_fp::Row { words: words.as_ptr(), inv_norm };
                self.len = self.len.wrapping_add(1);
                true
            }
            None => false,
        }
    }

    /// Number of vectors in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether there is no room for another.
    pub fn is_full(&self) -> bool {
        self.len == BATCH
    }

    /// Forgets the vectors.
    pub fn clear(&mut self) {
        self.len = 0;
    }
}

pub use vexfs_fp::{SIFT_DIM_MAX, SIFT_PANELS, SIFT_ROWS};

/// Bytes of a panel: the codes of [`SIFT_ROWS`] vectors side by side.
pub const fn panel_bytes(dim: usize) -> usize {
    vexfs_fp::panel_size(dim)
}

/// Bytes of the codes of a query that is sifted with.
pub const fn sieve_bytes(dim: usize) -> usize {
    dim.next_multiple_of(4)
}

/// A query in codes, to sift panels with.
#[repr(transparent)]
pub struct Sieve<'a> {
    raw: vexfs_fp::Sieve,
    borrow: PhantomData<&'a [u8]>,
}

impl Sieve<'_> {
    /// From now on only keys up to `key` are of interest.
    pub fn limit(&mut self, key: u64) {
        self.raw.wanted = key;
    }
}

/// Panels to sift in one call.
pub struct Panels<'a> {
    panels: [*const u8; SIFT_PANELS],
    len: usize,
    dim: usize,
    borrow: PhantomData<&'a [u8]>,
}

impl<'a> Panels<'a> {
    /// None yet, of vectors of `dim` elements.
    pub const fn new(dim: usize) -> Panels<'a> {
        Panels { panels: [core::ptr::null(); SIFT_PANELS], len: 0, dim, borrow: PhantomData }
    }

    /// Adds a panel if there is room and it has the size of one.
    pub fn push(&mut self, panel: &'a [u8]) {
        if let Some(p) = self.panels.get_mut(self.len).filter(|_| panel.len() == panel_bytes(self.dim)) {
            *p = panel.as_ptr();
            self.len = self.len.wrapping_add(1);
        }
    }

    /// Number of panels.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// For each panel a bit for each vector that stays.
pub type Stays = [u16; SIFT_PANELS];

/// Rough keys and true ones of the same vectors.
#[derive(Debug, Default)]
pub struct Pairs {
    roughs: [u32; BATCH],
    keys: [u64; BATCH],
    len: usize,
}

impl Pairs {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Adds a pair, if there is room.
    pub fn push(&mut self, rough: u32, key: u64) {
        if let (Some(r), Some(k)) = (self.roughs.get_mut(self.len), self.keys.get_mut(self.len)) {
            (*r, *k) = (rough, key);
            self.len = self.len.wrapping_add(1);
        }
    }
}

/// Distance kernels, as the driver supplies them in `Env::distance`. Every implementation gives the same
/// keys; a kernel module wraps [`Native`] in FPU sections.
pub trait Distance: crate::cluster::Clustering + Sync + Send {
    /// The keys of the distances from `query` to the vectors of `batch`, in order; further keys are left alone.
    /// Does nothing if the dimensions differ.
    fn many(&self, query: &Query<'_>, batch: &Batch<'_>, keys: &mut [u64; BATCH]);

    /// Rough keys of the distances from `query` to the vectors or codes of `batch`, as [`many`](Distance::many).
    fn rough(&self, query: &Rough<'_>, batch: &Batch<'_>, keys: &mut [u32; BATCH]);

    /// Keys that those of [`many`](Distance::many) are not below. The inverse norms have to be right.
    fn bounds(&self, query: &Query<'_>, batch: &Batch<'_>, keys: &mut [u64; BATCH]);

    /// Makes the codes of a vector; `codes` has [`code_words`] words, else nothing is done. True: they are a poor likeness,
    /// because a few elements are far larger than the rest.
    fn encode(&self, query: &Query<'_>, codes: &mut [u32]) -> bool;

    /// Puts a vector into a panel, as the one in place `lane`. Nothing is done if the panel has another size or is not aligned to 64.
    fn panel_put(&self, query: &Query<'_>, panel: &mut [u8], lane: usize);

    /// Makes a query to sift with, its codes in `codes` ([`sieve_bytes`] of them, else `None`). It keeps everything until it has a limit.
    fn sieve<'a>(&self, query: &Query<'_>, codes: &'a mut [u8]) -> Option<Sieve<'a>>;

    /// Sifts panels with each of the queries: a bit is 0 only if the key that [`many`](Distance::many) gives for that vector is
    /// above the query's limit.
    fn sift(&self, metric: Metric, panels: &Panels<'_>, sieves: &mut [Sieve<'_>], stays: &mut [Stays]);

    /// Whether the rough key `far` lies behind the key `near` by more than `times` the mean error of the rough keys in
    /// `pairs`. With 0 for `far`: whether the farthest of the pairs lies so far behind the nearest.
    fn apart(&self, pairs: &Pairs, near: u64, far: u32, times: u32) -> bool;

    /// Examines a vector: [`Error::BadVector`] if it may not be stored (NaN, infinity, or a squared norm
    /// that f32 cannot hold as a normal number).
    fn check(&self, words: &[u32]) -> Result<Norm, Error>;
}

/// Most codes of a vector.
const CODES_MAX: usize = 65_536;

/// The leaf called directly, where floating point is free to use.
#[derive(Clone, Copy, Debug)]
pub struct Native {
    path: u32,
}

impl Native {
    /// The portable path.
    pub const fn scalar() -> Native {
        Native { path: vexfs_fp::SCALAR }
    }

    /// The fastest path of this CPU.
    pub fn best() -> Native {
        Native { path: vexfs_fp::vexfs_fp_best() }
    }

    /// Number of the path in the leaf.
    pub(crate) const fn path(&self) -> u32 {
        self.path
    }

    /// Name of the path, for people.
    pub const fn name(&self) -> &'static str {
        match self.path {
            vexfs_fp::AVX2 => "avx2",
            vexfs_fp::AVX512 => "avx512",
            _ => "scalar",
        }
    }
}

impl Distance for Native {
    fn many(&self, query: &Query<'_>, batch: &Batch<'_>, keys: &mut [u64; BATCH]) {
        if query.words.len() != batch.dim {
            return;
        }
        // SAFETY: the query and every row of the batch hold `dim` elements (checked here and in `push`), the
        // first `len` rows are set and `len <= BATCH`; the path is scalar or what the leaf found on this CPU.
        unsafe {
            vexfs_fp::vexfs_fp_distances(
                self.path,
                query.metric as u32,
                query.words.as_ptr(),
                query.inv_norm,
                batch.dim,
                batch.rows.as_ptr(),
                batch.len,
                keys.as_mut_ptr(),
            )
        }
    }

    fn rough(&self, query: &Rough<'_>, batch: &Batch<'_>, keys: &mut [u32; BATCH]) {
        if query.words.len() != batch.dim {
            return;
        }
        let (words, rows, out) = (query.words.as_ptr(), batch.rows.as_ptr(), keys.as_mut_ptr());
        let metric = query.metric as u32;
        if query.coded {
            let len = batch.dim.wrapping_mul(4).saturating_sub(vexfs_fp::TERMS_SIZE);
            if len % vexfs_fp::CODES_ALIGN != 0 || len > CODES_MAX || code_words(len) != batch.dim {
                return;
            }
            // SAFETY: as in `many`; a row is codes, a multiple of what the leaf asks for, and terms, and consists of words.
            unsafe { vexfs_fp::vexfs_fp_codes(self.path, metric, words.cast(), len, rows, batch.len, out) }
        } else {
            // SAFETY: as in `many`.
            unsafe {
                vexfs_fp::vexfs_fp_rough(self.path, metric, words, query.inv_norm, batch.dim, rows, batch.len, out)
            }
        }
    }

    fn bounds(&self, query: &Query<'_>, batch: &Batch<'_>, keys: &mut [u64; BATCH]) {
        if query.words.len() != batch.dim {
            return;
        }
        // SAFETY: as in `many`.
        unsafe {
            vexfs_fp::vexfs_fp_bounds(
                self.path,
                query.metric as u32,
                query.words.as_ptr(),
                query.inv_norm,
                batch.dim,
                batch.rows.as_ptr(),
                batch.len,
                keys.as_mut_ptr(),
            )
        }
    }

    fn encode(&self, query: &Query<'_>, codes: &mut [u32]) -> bool {
        let dim = query.words.len();
        if dim > CODES_MAX || codes.len() != code_words(dim) {
            return true;
        }
        let len = dim.next_multiple_of(vexfs_fp::CODES_ALIGN);
        let (metric, words, to) = (query.metric as u32, query.words.as_ptr(), codes.as_mut_ptr().cast());
        // SAFETY: `dim` elements to read, room for `len` codes and the terms, in words.
        unsafe { vexfs_fp::vexfs_fp_encode(metric, words, dim, query.inv_norm, to, len) != 0 }
    }

    fn panel_put(&self, query: &Query<'_>, panel: &mut [u8], lane: usize) {
        let dim = query.words.len();
        let aligned = panel.as_ptr() as usize % 64 == 0;
        if dim > SIFT_DIM_MAX || panel.len() != panel_bytes(dim) || !aligned || lane >= SIFT_ROWS {
            return;
        }
        let (metric, words, to) = (query.metric as u32, query.words.as_ptr(), panel.as_mut_ptr());
        // SAFETY: `dim` elements to read, a panel of that size, aligned, and a lane of it.
        unsafe { vexfs_fp::vexfs_fp_panel_put(metric, words, dim, query.inv_norm, to, lane) }
    }

    fn sieve<'a>(&self, query: &Query<'_>, codes: &'a mut [u8]) -> Option<Sieve<'a>> {
        let dim = query.words.len();
        if dim > SIFT_DIM_MAX || codes.len() != sieve_bytes(dim) {
            return None;
        }
        let mut raw = core::mem::MaybeUninit::uninit();
        let (metric, words, to) = (query.metric as u32, query.words.as_ptr(), codes.as_mut_ptr().cast());
        // SAFETY: `dim` elements to read, room for as many codes, rounded up to four, and for the result, which is written.
        let raw = unsafe {
            vexfs_fp::vexfs_fp_sieve(metric, words, dim, query.inv_norm, to, raw.as_mut_ptr());
            raw.assume_init()
        };
        Some(Sieve { raw, borrow: PhantomData })
    }

    fn sift(&self, metric: Metric, panels: &Panels<'_>, sieves: &mut [Sieve<'_>], stays: &mut [Stays]) {
        let steps = sieve_bytes(panels.dim) / 4;
        if panels.dim > SIFT_DIM_MAX || stays.len() < sieves.len() || sieves.iter().any(|s| s.raw.steps != steps) {
            return;
        }
        let (of, out) = (panels.panels.as_ptr(), stays.as_mut_ptr().cast());
        let (all, m) = (sieves.as_mut_ptr().cast(), sieves.len());
        // SAFETY: panels of the right size, queries with as many codes, which their borrow keeps, and room for the results of each;
        // the path as in `many`.
        unsafe { vexfs_fp::vexfs_fp_sift(self.path, metric as u32, of, panels.len, steps, all, m, out) }
    }

    fn apart(&self, pairs: &Pairs, near: u64, far: u32, times: u32) -> bool {
        // SAFETY: both arrays hold `len` values and more.
        unsafe {
            vexfs_fp::vexfs_fp_apart(pairs.roughs.as_ptr(), pairs.keys.as_ptr(), pairs.len, near, far, times) != 0
        }
    }

    fn check(&self, words: &[u32]) -> Result<Norm, Error> {
        let mut c = vexfs_fp::Checked::default();
        // SAFETY: a slice of `len` elements and a place for the result.
        unsafe { vexfs_fp::vexfs_fp_check(words.as_ptr(), words.len(), &mut c) };
        if c.status != 0 {
            return Err(Error::BadVector);
        }
        Ok(Norm { inverse: c.inv_norm, zero: c.zero != 0 })
    }
}

/// Portable kernels.
pub static SCALAR: Native = Native::scalar();
#[cfg(target_arch = "x86_64")]
static AVX2: Native = Native { path: vexfs_fp::AVX2 };
#[cfg(target_arch = "x86_64")]
static AVX512: Native = Native { path: vexfs_fp::AVX512 };

/// The fastest kernels of this CPU, for `Env::distance`.
pub fn native() -> &'static dyn Distance {
    #[cfg(target_arch = "x86_64")]
    match vexfs_fp::vexfs_fp_best() {
        vexfs_fp::AVX2 => return &AVX2,
        vexfs_fp::AVX512 => return &AVX512,
        _ => {}
    }
    &SCALAR
}

/// Examines a vector for a collection or a search of `metric`; the `inv_norm` for its [`Slot`](crate::format::Slot) or
/// [`Query`]. Fails with `BadVector` or `ZeroVector`.
pub fn admit(kernels: &dyn Distance, metric: Metric, words: &[u32]) -> Result<u64, Error> {
    let norm = kernels.check(words)?;
    match (metric, norm.zero) {
        (Metric::Cosine, true) => Err(Error::ZeroVector),
        (Metric::Cosine, false) => Ok(norm.inverse),
        _ => Ok(0),
    }
}

/// Measures and counts.
pub struct Meter<'a> {
    kernels: &'a dyn Distance,
    /// Distances computed so far.
    pub count: u64,
}

impl<'a> Meter<'a> {
    /// Starts at zero.
    pub fn new(kernels: &'a dyn Distance) -> Meter<'a> {
        Meter { kernels, count: 0 }
    }

    /// What measures.
    pub fn kernels(&self) -> &'a dyn Distance {
        self.kernels
    }

    /// The keys of a batch.
    pub fn many(&mut self, query: &Query<'_>, batch: &Batch<'_>, keys: &mut [u64; BATCH]) {
        self.count = self.count.wrapping_add(batch.len as u64);
        self.kernels.many(query, batch, keys);
    }

    /// Lower bounds of the keys of a batch.
    pub fn bounds(&mut self, query: &Query<'_>, batch: &Batch<'_>, keys: &mut [u64; BATCH]) {
        self.count = self.count.wrapping_add(batch.len as u64);
        self.kernels.bounds(query, batch, keys);
    }

    /// The rough keys of a batch.
    pub fn rough(&mut self, query: &Rough<'_>, batch: &Batch<'_>, keys: &mut [u32; BATCH]) {
        self.count = self.count.wrapping_add(batch.len as u64);
        self.kernels.rough(query, batch, keys);
    }

    /// The rough key of one vector; the largest key if the lengths differ.
    pub fn rough_one(&mut self, query: &Rough<'_>, words: &[u32], inv_norm: u64) -> u32 {
        let mut batch = Batch::new(query.words.len());
        let mut keys = [u32::MAX; BATCH];
        if batch.push(words, inv_norm) {
            self.rough(query, &batch, &mut keys);
        }
        let [first, ..] = keys;
        first
    }

    /// The key of one vector; the largest key if the dimensions differ.
    pub fn one(&mut self, query: &Query<'_>, words: &[u32], inv_norm: u64) -> u64 {
        let mut batch = Batch::new(query.words.len());
        let mut keys = [u64::MAX; BATCH];
        if batch.push(words, inv_norm) {
            self.many(query, &batch, &mut keys);
        }
        let [first, ..] = keys;
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_bits() {
        for x in [0.0f64, 1.0, -1.0, 1e-300, -1e300, f64::INFINITY, f64::NEG_INFINITY, 0.25] {
            let key = bits_to_key(x.to_bits()).unwrap();
            assert_eq!(f64::from_bits(key_to_bits(key)), x);
        }
        assert_eq!(bits_to_key((-0.0f64).to_bits()), bits_to_key(0.0f64.to_bits()));
        assert_eq!(bits_to_key(f64::NAN.to_bits()), None);
        assert_eq!(bits_to_key((-f64::NAN).to_bits()), None);
        let key = |x: f64| bits_to_key(x.to_bits()).unwrap();
        assert!(key(-2.0) < key(-1.0) && key(-1.0) < key(0.0) && key(0.0) < key(1e-310) && key(1.0) < key(2.0));
    }

    #[test]
    fn meter_counts_and_agrees_with_floats() {
        let q: std::vec::Vec<u32> = [1.0f32, 2.0, 3.0].iter().map(|x| x.to_bits()).collect();
        let v: std::vec::Vec<u32> = [3.0f32, 2.0, 1.0].iter().map(|x| x.to_bits()).collect();
        for kernels in [native(), &SCALAR] {
            let mut m = Meter::new(kernels);
            let l2 = Query { metric: Metric::L2, words: &q, inv_norm: 0 };
            assert_eq!(f64::from_bits(key_to_bits(m.one(&l2, &v, 0))), 8.0);
            let ip = Query { metric: Metric::Ip, words: &q, inv_norm: 0 };
            assert_eq!(f64::from_bits(key_to_bits(m.one(&ip, &v, 0))), -10.0);
            let (iq, iv) = (admit(kernels, Metric::Cosine, &q).unwrap(), admit(kernels, Metric::Cosine, &v).unwrap());
            let cos = Query { metric: Metric::Cosine, words: &q, inv_norm: iq };
            let d = f64::from_bits(key_to_bits(m.one(&cos, &v, iv)));
            assert!((d - (1.0 - 10.0 / 14.0)).abs() < 1e-12);
            assert_eq!(m.count, 3);
            assert_eq!(m.one(&l2, &v[..2], 0), u64::MAX);
            assert_eq!(m.count, 3);
            assert_eq!(admit(kernels, Metric::Cosine, &[0, 0]), Err(Error::ZeroVector));
            assert_eq!(admit(kernels, Metric::L2, &[0, 0]), Ok(0));
            assert_eq!(admit(kernels, Metric::L2, &[0x7fc0_0000]), Err(Error::BadVector));
        }
    }
}
