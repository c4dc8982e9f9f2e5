// SPDX-License-Identifier: GPL-2.0-only
//! Raw access to the 4096 bytes of a node: search, insert, remove, split, and the check of bytes that
//! came from the device. Owns the layout inside a node; knows nothing of other nodes. Functions take nodes
//! that [`valid`] accepted or that were made here; given anything else they return nonsense, never panic.

use crate::format::{Key, NodeHead, Ptr, Wire, BLOCK, FIRST_BLOCK, NODE_MAGIC, TREE, VALUE_MAX, VOLUME_MAX};

/// Bytes before the first item.
pub const HEAD: usize = NodeHead::SIZE;
/// Bytes of a leaf's slot: key, offset and length of the value.
pub const SLOT: usize = Key::SIZE + 4;
/// Bytes of an inner node's entry: key, pointer.
pub const ENTRY: usize = Key::SIZE + Ptr::SIZE;
/// Bytes for items in a node.
pub const CAPACITY: usize = BLOCK - HEAD;
/// Most entries of an inner node.
pub const INNER_MAX: usize = CAPACITY / ENTRY;
/// Highest level of a node. A tree of this height holds more than the largest volume can.
pub const LEVEL_MAX: u16 = 15;

const LEVEL_AT: usize = 48;
const ITEMS_AT: usize = 50;
const VALUES_AT: usize = 52;
const GARBAGE_AT: usize = 54;

fn u16_at(b: &[u8], at: usize) -> usize {
    usize::from(<u16 as Wire>::get(b, at).unwrap_or(0))
}

fn set_u16(b: &mut [u8], at: usize, x: usize) {
    // Every value stored here is at most 4096.
    (x as u16).put(b, at);
}

/// Level of the node, 0 for a leaf.
pub fn level(b: &[u8]) -> u16 {
    u16_at(b, LEVEL_AT) as u16
}

/// Number of items or entries.
pub fn items(b: &[u8]) -> usize {
    u16_at(b, ITEMS_AT)
}

fn values(b: &[u8]) -> usize {
    u16_at(b, VALUES_AT)
}

fn garbage(b: &[u8]) -> usize {
    u16_at(b, GARBAGE_AT)
}

/// Where item `i` starts.
fn place(b: &[u8], i: usize) -> usize {
    let stride = if level(b) == 0 { SLOT } else { ENTRY };
    HEAD.wrapping_add(i.wrapping_mul(stride))
}

/// Makes `b` an empty node of `level`.
pub fn init(b: &mut [u8], level: u16) {
    if let Some(head) = b.get_mut(..HEAD) {
        head.fill(0);
    }
    set_u16(b, LEVEL_AT, usize::from(level));
    set_u16(b, VALUES_AT, if level == 0 { BLOCK } else { 0 });
}

/// Key of item `i`.
pub fn key(b: &[u8], i: usize) -> Option<Key> {
    if i >= items(b) {
        return None;
    }
    Key::parse(b.get(place(b, i)..)?)
}

/// Key of the last item.
pub fn last_key(b: &[u8]) -> Option<Key> {
    key(b, items(b).checked_sub(1)?)
}

/// Index of `k`, or where it would have to go.
pub fn find(b: &[u8], k: &Key) -> Result<usize, usize> {
    let (mut lo, mut hi) = (0, items(b));
    while lo < hi {
        let mid = lo.wrapping_add(hi) / 2;
        match key(b, mid).map(|x| x.cmp(k)) {
            Some(core::cmp::Ordering::Less) => lo = mid.wrapping_add(1),
            Some(core::cmp::Ordering::Equal) => return Ok(mid),
            _ => hi = mid,
        }
    }
    Err(lo)
}

/// Index of the child whose range holds `k` (the first one for keys below all).
pub fn find_child(b: &[u8], k: &Key) -> usize {
    match find(b, k) {
        Ok(i) => i,
        Err(i) => i.saturating_sub(1),
    }
}

/// Removes item or entry `i`. The bytes of a leaf's value become garbage.
pub fn remove(b: &mut [u8], i: usize) {
    let n = items(b);
    if i >= n {
        return;
    }
    if level(b) == 0 {
        let (at, len) = span(b, i);
        give_up(b, at, len);
    }
    let (from, next, end) = (place(b, i), place(b, i.wrapping_add(1)), place(b, n));
    shift(b, next, end, from);
    set_u16(b, ITEMS_AT, n.wrapping_sub(1));
}

/// Moves the bytes `from..end` to `to`; they may overlap. (`copy_within` would panic on bad bounds.)
fn shift(b: &mut [u8], from: usize, end: usize, to: usize) {
    let Some(len) = end.checked_sub(from) else { return };
    if end <= b.len() && to.checked_add(len).is_some_and(|e| e <= b.len()) {
        let p = b.as_mut_ptr();
        // SAFETY: both ranges were just checked to lie within `b`, which is borrowed exclusively.
        unsafe { core::ptr::copy(p.add(from), p.add(to), len) };
    }
}

/// Opens a gap for a new item `i`; there has to be room.
fn open(b: &mut [u8], i: usize) -> Option<usize> {
    let n = items(b);
    let (from, next, end) = (place(b, i), place(b, i.wrapping_add(1)), place(b, n));
    if i > n || place(b, n.wrapping_add(1)) > b.len() {
        return None;
    }
    shift(b, from, end, next);
    set_u16(b, ITEMS_AT, n.wrapping_add(1));
    Some(from)
}

// Leaves.

/// Offset and length of the value of item `i`.
fn span(b: &[u8], i: usize) -> (usize, usize) {
    let at = place(b, i).wrapping_add(Key::SIZE);
    (u16_at(b, at), u16_at(b, at.wrapping_add(2)))
}

/// An empty value is said to be at the end of the block: no later change can leave it outside.
fn set_span(b: &mut [u8], i: usize, off: usize, len: usize) {
    let at = place(b, i).wrapping_add(Key::SIZE);
    set_u16(b, at, if len == 0 { BLOCK } else { off });
    set_u16(b, at.wrapping_add(2), len);
}

/// The value bytes `off..off + len` are no longer used.
fn give_up(b: &mut [u8], off: usize, len: usize) {
    if len == 0 {
        return;
    }
    if off == values(b) {
        set_u16(b, VALUES_AT, off.wrapping_add(len));
    } else {
        let g = garbage(b).wrapping_add(len);
        set_u16(b, GARBAGE_AT, g);
    }
}

/// Value of item `i` of a leaf.
pub fn value(b: &[u8], i: usize) -> Option<&[u8]> {
    if i >= items(b) {
        return None;
    }
    let (off, len) = span(b, i);
    b.get(off..off.checked_add(len)?)
}

/// Bytes that the items of a leaf take.
pub fn used(b: &[u8]) -> usize {
    let slots = items(b).wrapping_mul(SLOT);
    BLOCK.wrapping_sub(values(b)).wrapping_sub(garbage(b)).wrapping_add(slots)
}

/// Free bytes between slots and values.
fn gap(b: &[u8]) -> usize {
    values(b).saturating_sub(place(b, items(b)))
}

/// Moves the values together so that there is no garbage. `scratch` is a spare block.
fn compact(b: &mut [u8], scratch: &mut [u8]) {
    if garbage(b) == 0 {
        return;
    }
    if let (Some(d), Some(s)) = (scratch.get_mut(..BLOCK), b.get(..BLOCK)) {
        d.copy_from_slice(s);
    }
    let mut at = BLOCK;
    for i in 0..items(scratch) {
        if let Some(v) = value(scratch, i) {
            at = at.saturating_sub(v.len());
            if let Some(d) = b.get_mut(at..at.wrapping_add(v.len())) {
                d.copy_from_slice(v);
            }
            set_span(b, i, at, v.len());
        }
    }
    set_u16(b, VALUES_AT, at);
    set_u16(b, GARBAGE_AT, 0);
}

/// Room for `len` value bytes and `slots` bytes of slots; the values are moved together if need be.
fn make_room(b: &mut [u8], slots: usize, len: usize, scratch: &mut [u8]) -> bool {
    let need = slots.wrapping_add(len);
    if gap(b) < need && gap(b).wrapping_add(garbage(b)) >= need {
        compact(b, scratch);
    }
    gap(b) >= need
}

/// Puts `v` below the other values; there has to be room.
fn add_value(b: &mut [u8], v: &[u8]) -> Option<usize> {
    let at = values(b).checked_sub(v.len())?;
    b.get_mut(at..at.wrapping_add(v.len()))?.copy_from_slice(v);
    set_u16(b, VALUES_AT, at);
    Some(at)
}

/// Inserts an item as item `i` of a leaf. False: it does not fit, nothing was changed but the garbage.
pub fn insert(b: &mut [u8], i: usize, k: &Key, v: &[u8], scratch: &mut [u8]) -> bool {
    if i > items(b) || !make_room(b, SLOT, v.len(), scratch) {
        return false;
    }
    let Some(at) = add_value(b, v) else { return false };
    let Some(slot) = open(b, i) else { return false };
    if let Some(s) = b.get_mut(slot..) {
        k.emit(s);
    }
    set_span(b, i, at, v.len());
    true
}

/// Sets the value of item `i` of a leaf. False: it does not fit, nothing was changed.
pub fn replace(b: &mut [u8], i: usize, v: &[u8], scratch: &mut [u8]) -> bool {
    let (off, len) = span(b, i);
    if v.len() <= len {
        // The tail of the old value becomes garbage.
        if let Some(d) = b.get_mut(off..off.wrapping_add(v.len())) {
            d.copy_from_slice(v);
        }
        let g = garbage(b).wrapping_add(len.wrapping_sub(v.len()));
        set_u16(b, GARBAGE_AT, g);
        set_span(b, i, off, v.len());
        return true;
    }
    // What the old value takes is free for the new one.
    if gap(b).wrapping_add(garbage(b)).wrapping_add(len) < v.len() {
        return false;
    }
    give_up(b, off, len);
    set_span(b, i, BLOCK, 0);
    if !make_room(b, 0, v.len(), scratch) {
        return false;
    }
    match add_value(b, v) {
        Some(at) => {
            set_span(b, i, at, v.len());
            true
        }
        None => false,
    }
}

/// Appends an item to a leaf that has room and no garbage.
fn push(b: &mut [u8], k: &Key, v: &[u8]) {
    let n = items(b);
    if gap(b) < SLOT.wrapping_add(v.len()) {
        return;
    }
    if let (Some(at), Some(slot)) = (add_value(b, v), open(b, n)) {
        if let Some(s) = b.get_mut(slot..) {
            k.emit(s);
        }
        set_span(b, n, at, v.len());
    }
}

/// Appends the items `from..to` of leaf `src` to leaf `b`.
fn push_range(b: &mut [u8], src: &[u8], from: usize, to: usize) {
    for i in from..to {
        if let (Some(k), Some(v)) = (key(src, i), value(src, i)) {
            push(b, &k, v);
        }
    }
}

/// Copies a block; nothing if one of them is shorter.
pub fn copy_block(d: &mut [u8], s: &[u8]) {
    if let (Some(d), Some(s)) = (d.get_mut(..BLOCK), s.get(..BLOCK)) {
        d.copy_from_slice(s);
    }
}

/// Splits the leaf `left`, which has no room for the item (`k`, `v`) at `i`, into itself and `right`.
/// By bytes, about half and half, but a leaf that overflows at its end stays as it is and the new
/// item starts the right one: ascending inserts leave full leaves behind. The larger half takes at most
/// half of the bytes and half of the largest item (518), which always fits.
pub fn split(left: &mut [u8], right: &mut [u8], i: usize, k: &Key, v: &[u8], scratch: &mut [u8]) {
    init(right, 0);
    let n = items(left);
    if i >= n {
        push(right, k, v);
        return;
    }
    copy_block(scratch, left);
    let old = &*scratch;
    let size = |j: usize| SLOT.wrapping_add(span(old, j).1);
    let fresh = SLOT.wrapping_add(v.len());
    let total = used(old).wrapping_add(fresh);
    // Cut before the item of the new order (old ones and the new one at `i`) that is nearest to the middle.
    let (mut cut, mut sum) = (0, 0usize);
    while cut <= n {
        let this = match cut.cmp(&i) {
            core::cmp::Ordering::Less => size(cut),
            core::cmp::Ordering::Equal => fresh,
            core::cmp::Ordering::Greater => size(cut.wrapping_sub(1)),
        };
        let after = sum.wrapping_add(this);
        if after.wrapping_mul(2) >= total {
            if after.wrapping_mul(2).wrapping_sub(total) < total.wrapping_sub(sum.wrapping_mul(2)) {
                cut = cut.wrapping_add(1);
            }
            break;
        }
        sum = after;
        cut = cut.wrapping_add(1);
    }
    init(left, 0);
    if cut <= i {
        push_range(left, old, 0, cut);
        push_range(right, old, cut, i);
        push(right, k, v);
        push_range(right, old, i, n);
    } else {
        push_range(left, old, 0, i);
        push(left, k, v);
        push_range(left, old, i, cut.wrapping_sub(1));
        push_range(right, old, cut.wrapping_sub(1), n);
    }
}

// Inner nodes.

/// Pointer of entry `i` of an inner node.
pub fn child(b: &[u8], i: usize) -> Option<Ptr> {
    if i >= items(b) || level(b) == 0 {
        return None;
    }
    Ptr::parse(b.get(place(b, i).wrapping_add(Key::SIZE)..)?)
}

/// Address (or virtual id) in entry `i` of an inner node.
pub fn child_addr(b: &[u8], i: usize) -> u64 {
    <u64 as Wire>::get(b, place(b, i).wrapping_add(Key::SIZE)).unwrap_or(0)
}

/// Sets the pointer of entry `i`.
pub fn set_child(b: &mut [u8], i: usize, p: &Ptr) {
    let at = place(b, i).wrapping_add(Key::SIZE);
    if let Some(d) = b.get_mut(at..) {
        p.emit(d);
    }
}

/// Sets the key of item or entry `i`.
pub fn set_key(b: &mut [u8], i: usize, k: &Key) {
    let at = place(b, i);
    if let Some(d) = b.get_mut(at..) {
        k.emit(d);
    }
}

/// Inserts an entry as entry `i`. False: the node is full.
pub fn insert_child(b: &mut [u8], i: usize, k: &Key, p: &Ptr) -> bool {
    if items(b) >= INNER_MAX || i > items(b) || open(b, i).is_none() {
        return false;
    }
    set_key(b, i, k);
    set_child(b, i, p);
    true
}

/// Splits the full inner node `left` and inserts the entry at `i`; at its end, as with leaves, the
/// new entry alone starts the right node.
pub fn split_inner(left: &mut [u8], right: &mut [u8], i: usize, k: &Key, p: &Ptr) {
    let n = items(left);
    init(right, level(left));
    let cut = if i >= n { n } else { n / 2 };
    let (from, end) = (place(left, cut), place(left, n));
    if let (Some(d), Some(s)) = (right.get_mut(HEAD..HEAD.wrapping_add(end.wrapping_sub(from))), left.get(from..end)) {
        d.copy_from_slice(s);
    }
    set_u16(right, ITEMS_AT, n.wrapping_sub(cut));
    set_u16(left, ITEMS_AT, cut);
    if i > cut || i >= n {
        insert_child(right, i.wrapping_sub(cut), k, p);
    } else {
        insert_child(left, i, k, p);
    }
}

/// Whether `a` holds so little that it should be merged with a neighbour.
pub fn underfull(a: &[u8]) -> bool {
    if level(a) == 0 {
        used(a) < CAPACITY / 4
    } else {
        items(a) < INNER_MAX / 4
    }
}

/// Whether the items of both fit one node, with room to spare so that it is not split again at once.
pub fn mergeable(a: &[u8], b: &[u8]) -> bool {
    if level(a) != level(b) {
        false
    } else if level(a) == 0 {
        used(a).wrapping_add(used(b)) <= CAPACITY / 4 * 3
    } else {
        items(a).wrapping_add(items(b)) <= INNER_MAX / 2
    }
}

/// Takes the items of `other`, the neighbour to the right (or to the left), into `b`; they have to fit.
/// `low` is the lower bound of the right one of the two: in inner nodes the first key of its part, so that
/// keys below that still lead to the same child.
pub fn merge(b: &mut [u8], other: &[u8], right: bool, low: &Key, scratch: &mut [u8]) {
    copy_block(scratch, b);
    let (n, m) = (items(scratch), items(other));
    let own = &*scratch;
    let (first, fc, second, sc) = if right { (own, n, other, m) } else { (other, m, own, n) };
    if level(own) == 0 {
        init(b, 0);
        push_range(b, first, 0, fc);
        push_range(b, second, 0, sc);
        return;
    }
    let mut at = HEAD;
    for (src, count) in [(first, fc), (second, sc)] {
        let len = count.wrapping_mul(ENTRY);
        let (end, stop) = (at.wrapping_add(len), HEAD.wrapping_add(len));
        if let (Some(d), Some(s)) = (b.get_mut(at..end), src.get(HEAD..stop)) {
            d.copy_from_slice(s);
        }
        at = end;
    }
    set_u16(b, ITEMS_AT, n.wrapping_add(m));
    set_key(b, fc, low);
}

/// Writes what only the checkpoint knows into the head and clears the bytes that nothing uses, so
/// that what was deleted does not stay on the device by accident.
pub fn finish(b: &mut [u8], uuid: &[u8; 16], addr: u64, twin: u64, birth: u64) {
    let head = NodeHead {
        crc: 0,
        magic: NODE_MAGIC,
        uuid: *uuid,
        addr,
        twin,
        birth,
        level: level(b),
        items: items(b) as u16,
        values: values(b) as u16,
        garbage: garbage(b) as u16,
        tree: TREE,
        reserved: 0,
    };
    head.emit(b);
    let from = place(b, items(b));
    let to = if level(b) == 0 { values(b) } else { BLOCK };
    if let Some(unused) = b.get_mut(from..to) {
        unused.fill(0);
    }
}

/// Whether `b` is the node that `ptr` points to, well-formed in itself: identity, place, counts, keys in order,
/// values within the node without overlap, pointers possible. The checksum is the caller's to check.
/// `empty`: it may have no items (the root of an empty tree).
pub fn valid(b: &[u8], ptr: &Ptr, expect: u16, uuid: &[u8; 16], copies: u32, empty: bool) -> bool {
    let Some(h) = NodeHead::parse(b) else { return false };
    let n = items(b);
    b.len() == BLOCK
        && h.magic == NODE_MAGIC
        && h.uuid == *uuid
        && (h.addr, h.twin, h.birth) == (ptr.addr, ptr.twin, ptr.birth)
        && h.level == expect
        && h.level <= LEVEL_MAX
        && h.tree == TREE
        && h.crc == 0
        && h.reserved == 0
        && pointer_possible(ptr, copies)
        && (n > 0 || (empty && expect == 0))
        && place(b, n) <= BLOCK
        && ascending(b)
        && if h.level == 0 { values_fit(b) } else { children_fit(b, &h, copies) }
}

fn pointer_possible(p: &Ptr, copies: u32) -> bool {
    let inside = |a: u64| (FIRST_BLOCK..VOLUME_MAX).contains(&a);
    inside(p.addr) && (if copies == 2 { inside(p.twin) && p.twin != p.addr } else { p.twin == 0 }) && p.reserved == 0
}

fn ascending(b: &[u8]) -> bool {
    let mut last: Option<Key> = None;
    for i in 0..items(b) {
        let Some(k) = key(b, i) else { return false };
        if k.tree != TREE || last.is_some_and(|l| l >= k) {
            return false;
        }
        last = Some(k);
    }
    true
}

fn children_fit(b: &[u8], h: &NodeHead, copies: u32) -> bool {
    let possible = |i| child(b, i).is_some_and(|p| pointer_possible(&p, copies) && p.birth <= h.birth);
    h.values == 0 && h.garbage == 0 && (0..items(b)).all(possible)
}

fn values_fit(b: &[u8]) -> bool {
    let low = values(b);
    if low < place(b, items(b)) || low > BLOCK {
        return false;
    }
    // One bit for each byte of the node: two values must not share one.
    let mut taken = [0u64; BLOCK / 64];
    let mut sum = 0usize;
    for i in 0..items(b) {
        let (off, len) = span(b, i);
        let end = off.wrapping_add(len);
        if len > VALUE_MAX || off < low || end > BLOCK || (len == 0 && off != BLOCK) {
            return false;
        }
        sum = sum.wrapping_add(len);
        let mut at = off;
        while at < end {
            let bit = at % 64;
            let count = 64usize.wrapping_sub(bit).min(end.wrapping_sub(at));
            let mask = (u64::MAX >> (64usize.wrapping_sub(count) & 63)) << bit;
            let Some(word) = taken.get_mut(at / 64) else { return false };
            if *word & mask != 0 {
                return false;
            }
            *word |= mask;
            at = at.wrapping_add(count);
        }
    }
    BLOCK.wrapping_sub(low).wrapping_sub(sum) == garbage(b)
}
