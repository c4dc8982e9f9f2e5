// SPDX-License-Identifier: GPL-2.0-only
//! A record's attributes as one byte string, the same on the wire and on disk: entries in ascending order of
//! their names, each a head ([`AttrHead`]), the name and the value. One form for one set of
//! attributes, so equal sets are equal bytes. Owns encoding, validation, lookup and merging.

use crate::error::Error;
use crate::mem::{self, NoMemory};
use crate::proto::wire::{attr_type as ty, AttrHead, ATTRS_MAX};
use alloc::vec::Vec;
use core::cmp::Ordering;

/// The value of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A string.
    Str(&'a [u8]),
    /// A 64-bit integer.
    I64(i64),
    /// f64 bits.
    F64(u64),
    /// A boolean.
    Bool(bool),
    /// Text without a type, a file's extended attribute: meets string literals as it is, and numbers and
    /// booleans if it is wholly one. Encoded as a string.
    Text(&'a [u8]),
}

/// What is wrong with encoded attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttrsError {
    /// More than [`ATTRS_MAX`] bytes.
    TooBig,
    /// An entry does not end within the bytes.
    Cut,
    /// A name is empty or not UTF-8.
    Name,
    /// Names are not in order, or one is there twice.
    Order,
    /// The type is not known.
    Type,
    /// The value does not have its type's length, or is not 0 or 1 for a boolean.
    Value,
    /// A string is not UTF-8.
    Utf8,
    /// A float is a NaN or infinite.
    NotFinite,
}

impl AttrsError {
    /// The error that a request gets.
    pub const fn error(self) -> Error {
        match self {
            AttrsError::TooBig => Error::TooBig,
            _ => Error::Invalid,
        }
    }

    /// What is wrong, for people.
    pub const fn message(self) -> &'static str {
        match self {
            AttrsError::TooBig => "its attributes take more than 65536 bytes",
            AttrsError::Cut => "its attributes are cut off",
            AttrsError::Name => "the name of an attribute is empty or not UTF-8",
            AttrsError::Order => "its attributes are not sorted by name, or one is there twice",
            AttrsError::Type => "an attribute has an unknown type",
            AttrsError::Value => "the value of an attribute does not fit its type",
            AttrsError::Utf8 => "a string attribute is not UTF-8",
            AttrsError::NotFinite => "a number attribute is a NaN or infinite",
        }
    }
}

/// One entry as it stands in the bytes.
#[derive(Clone, Copy, Debug)]
struct Entry<'a> {
    /// The entry's own bytes.
    raw: &'a [u8],
    name: &'a [u8],
    ty: u8,
    value: &'a [u8],
}

/// The first entry of `b` and what follows it.
fn split(b: &[u8]) -> Option<(Entry<'_>, &[u8])> {
    let h = AttrHead::parse(b)?;
    let name_end = AttrHead::SIZE.checked_add(usize::from(h.name_len))?;
    let end = name_end.checked_add(usize::from(h.value_len))?;
    let e =
        Entry { raw: b.get(..end)?, name: b.get(AttrHead::SIZE..name_end)?, ty: h.ty, value: b.get(name_end..end)? };
    Some((e, b.get(end..)?))
}

impl<'a> Entry<'a> {
    fn value(&self) -> Option<Value<'a>> {
        Some(match self.ty {
            ty::STRING => Value::Str(self.value),
            ty::I64 => Value::I64(i64::from_le_bytes(self.value.try_into().ok()?)),
            ty::F64 => Value::F64(u64::from_le_bytes(self.value.try_into().ok()?)),
            ty::BOOL => match self.value {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                _ => return None,
            },
            _ => return None,
        })
    }

    fn check(&self, removals: bool) -> Result<(), AttrsError> {
        if self.name.is_empty() || core::str::from_utf8(self.name).is_err() {
            return Err(AttrsError::Name);
        }
        match self.ty {
            ty::NONE if removals => {
                if self.value.is_empty() {
                    return Ok(());
                }
                return Err(AttrsError::Value);
            }
            ty::STRING | ty::I64 | ty::F64 | ty::BOOL => {}
            _ => return Err(AttrsError::Type),
        }
        match self.value() {
            None => Err(AttrsError::Value),
            Some(Value::Str(s)) if core::str::from_utf8(s).is_err() => Err(AttrsError::Utf8),
            Some(Value::F64(bits)) if !is_finite(bits) => Err(AttrsError::NotFinite),
            Some(_) => Ok(()),
        }
    }
}

/// Whether f64 bits are neither a NaN nor an infinity.
pub const fn is_finite(bits: u64) -> bool {
    bits & 0x7ff0_0000_0000_0000 != 0x7ff0_0000_0000_0000
}

/// Checks encoded attributes wholly. `removals`: entries of type NONE are allowed (a patch for [`merge`]).
pub fn validate(attrs: &[u8], removals: bool) -> Result<(), AttrsError> {
    if attrs.len() > ATTRS_MAX as usize {
        return Err(AttrsError::TooBig);
    }
    let mut rest = attrs;
    let mut last: &[u8] = &[];
    while !rest.is_empty() {
        let (e, next) = split(rest).ok_or(AttrsError::Cut)?;
        e.check(removals)?;
        // A name is not empty, so the first one is above the empty `last`.
        if e.name <= last {
            return Err(AttrsError::Order);
        }
        last = e.name;
        rest = next;
    }
    Ok(())
}

/// All attributes in order of their names. Ends early at an entry that is cut off.
pub fn iter(attrs: &[u8]) -> impl Iterator<Item = (&[u8], Value<'_>)> {
    let mut rest = attrs;
    core::iter::from_fn(move || {
        let (e, next) = split(rest)?;
        rest = next;
        Some((e.name, e.value()?))
    })
}

/// The value of the attribute `name`.
pub fn lookup<'a>(attrs: &'a [u8], name: &[u8]) -> Option<Value<'a>> {
    let mut rest = attrs;
    while let Some((e, next)) = split(rest) {
        match e.name.cmp(name) {
            Ordering::Equal => return e.value(),
            Ordering::Greater => return None,
            Ordering::Less => rest = next,
        }
    }
    None
}

/// `attrs` with `patch` laid over it: values replace or join, entries of type NONE remove. Both are valid.
pub fn merge(attrs: &[u8], patch: &[u8]) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    let (mut a, mut b) = (split(attrs), split(patch));
    loop {
        let order = match (&a, &b) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((x, _)), Some((y, _))) => x.name.cmp(y.name),
        };
        let take = if order == Ordering::Less { &a } else { &b };
        if let Some((e, _)) = take {
            if e.ty != ty::NONE {
                mem::extend(&mut out, e.raw)?;
            }
        }
        if order != Ordering::Greater {
            a = a.and_then(|(_, rest)| split(rest));
        }
        if order != Ordering::Less {
            b = b.and_then(|(_, rest)| split(rest));
        }
    }
    if out.len() > ATTRS_MAX as usize {
        return Err(Error::TooBig);
    }
    Ok(out)
}

/// Appends one entry. Names have to come in ascending order.
fn append(out: &mut Vec<u8>, name: &[u8], value: Value<'_>) -> Result<(), Error> {
    let (ty, int, flag);
    let bytes: &[u8] = match value {
        Value::Str(s) | Value::Text(s) => {
            ty = ty::STRING;
            s
        }
        Value::I64(i) => {
            ty = ty::I64;
            int = i.to_le_bytes();
            &int
        }
        Value::F64(bits) => {
            ty = ty::F64;
            int = bits.to_le_bytes();
            &int
        }
        Value::Bool(b) => {
            ty = ty::BOOL;
            flag = [u8::from(b)];
            &flag
        }
    };
    let name_len = u8::try_from(name.len()).map_err(|_| Error::NameTooLong)?;
    let value_len = u16::try_from(bytes.len()).map_err(|_| Error::TooBig)?;
    mem::extend(out, &AttrHead { name_len, ty, value_len }.bytes())?;
    mem::extend(out, name)?;
    mem::extend(out, bytes)?;
    Ok(())
}

/// Collects attributes in any order and encodes them in order.
#[derive(Debug, Default)]
pub struct Builder {
    bytes: Vec<u8>,
    /// Where each entry is in `bytes`, in order of the names.
    entries: Vec<(u32, u32)>,
}

impl Builder {
    /// No attributes.
    pub const fn new() -> Builder {
        Builder { bytes: Vec::new(), entries: Vec::new() }
    }

    fn entry(&self, range: &(u32, u32)) -> Option<Entry<'_>> {
        let (from, to) = *range;
        self.bytes.get(from as usize..to as usize).and_then(split).map(|(e, _)| e)
    }

    /// Adds an attribute, or replaces the one of this name. `TooBig` for a value above 65535 bytes, which this
    /// encoding cannot carry.
    pub fn add(&mut self, name: &[u8], value: Value<'_>) -> Result<(), Error> {
        let from = u32::try_from(self.bytes.len()).map_err(|_| Error::TooBig)?;
        append(&mut self.bytes, name, value)?;
        let to = u32::try_from(self.bytes.len()).map_err(|_| Error::TooBig)?;
        // Placed by search: the sorts of `core` recurse.
        match self.entries.binary_search_by(|r| self.entry(r).map_or(&[][..], |e| e.name).cmp(name)) {
            Ok(i) => {
                if let Some(r) = self.entries.get_mut(i) {
                    *r = (from, to);
                }
            }
            Err(i) => mem::insert(&mut self.entries, i, (from, to))?,
        }
        Ok(())
    }

    /// The encoded attributes.
    pub fn finish(self) -> Result<Vec<u8>, NoMemory> {
        let mut out = Vec::new();
        mem::reserve(&mut out, self.bytes.len())?;
        for e in self.entries.iter().filter_map(|r| self.entry(r)) {
            mem::extend(&mut out, e.raw)?;
        }
        Ok(out)
    }
}
