// SPDX-License-Identifier: GPL-2.0-only
//! Values that are longer than one item: cut into pieces of [`VALUE_MAX`] bytes under consecutive `sub`.
//! The value itself says how long it is; a piece of another length than that asks for is damage.

use crate::error::{Error, Step, Stop};
use crate::format::{Key, VALUE_MAX};
use crate::mem;
use crate::txn::Txn;
use alloc::vec::Vec;

/// The `len` bytes that start with piece 0 at `key`. The caller has bounded `len`.
pub fn read(t: &Txn<'_>, key: Key, len: usize) -> Step<Vec<u8>> {
    let mut v = Vec::new();
    mem::reserve(&mut v, len)?;
    let mut piece = key;
    while v.len() < len {
        let want = len.saturating_sub(v.len()).min(VALUE_MAX);
        match t.get(&piece)? {
            Some(b) if b.len() == want => mem::extend(&mut v, b)?,
            _ => return Err(Stop::Fail(Error::Corrupt)),
        }
        piece = piece.piece(piece.sub.wrapping_add(1));
    }
    Ok(v)
}

/// Puts `bytes` as pieces from `key` on. A longer value of before has to be removed first.
pub fn write(t: &mut Txn<'_>, key: Key, bytes: &[u8]) -> Step<()> {
    let mut piece = key;
    for b in bytes.chunks(VALUE_MAX) {
        t.put(piece, b)?;
        piece = piece.piece(piece.sub.wrapping_add(1));
    }
    Ok(())
}

/// Removes the items from `from` to `to`, at most `budget` of them, which it counts down. False if some are left.
pub fn remove(t: &mut Txn<'_>, from: Key, to: Key, budget: &mut usize) -> Step<bool> {
    let mut at = from;
    while let Some((k, _)) = t.next(&at, &to)? {
        if *budget == 0 {
            return Ok(false);
        }
        *budget = budget.saturating_sub(1);
        t.del(k)?;
        match k.next() {
            Some(n) => at = n,
            None => break,
        }
    }
    Ok(true)
}

/// Removes all items from `from` to `to`; their number is bounded by the kind of value that they hold.
pub fn remove_all(t: &mut Txn<'_>, from: Key, to: Key) -> Step<()> {
    let mut budget = usize::MAX;
    remove(t, from, to, &mut budget)?;
    Ok(())
}
