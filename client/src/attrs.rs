// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attributes of records.

use crate::wire::{attr_type, AttrHead, ATTRS_MAX};
use crate::Error;
use std::collections::BTreeMap;

/// Attributes by name.
pub type Attrs = BTreeMap<String, AttrValue>;

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum AttrValue {
    /// Text.
    String(String),
    /// An integer.
    I64(i64),
    /// A number; neither NaN nor infinite.
    F64(f64),
    /// True or false.
    Bool(bool),
    /// Bytes that are no text: only read, from a file's extended attributes.
    Bytes(Vec<u8>),
    /// No value: removes the attribute when attributes are merged.
    Remove,
}

impl From<&str> for AttrValue {
    fn from(s: &str) -> AttrValue {
        AttrValue::String(s.to_owned())
    }
}

impl From<String> for AttrValue {
    fn from(s: String) -> AttrValue {
        AttrValue::String(s)
    }
}

impl From<i64> for AttrValue {
    fn from(i: i64) -> AttrValue {
        AttrValue::I64(i)
    }
}

impl From<f64> for AttrValue {
    fn from(f: f64) -> AttrValue {
        AttrValue::F64(f)
    }
}

impl From<bool> for AttrValue {
    fn from(b: bool) -> AttrValue {
        AttrValue::Bool(b)
    }
}

/// Appends the encoded attributes.
pub(crate) fn encode(attrs: &Attrs, out: &mut Vec<u8>) -> Result<(), Error> {
    let from = out.len();
    for (name, value) in attrs {
        let number;
        let flag;
        let (ty, bytes): (u8, &[u8]) = match value {
            AttrValue::String(s) => (attr_type::STRING, s.as_bytes()),
            AttrValue::Bytes(b) => (attr_type::STRING, b),
            AttrValue::I64(i) => {
                number = i.to_le_bytes();
                (attr_type::I64, &number)
            }
            AttrValue::F64(f) => {
                if !f.is_finite() {
                    return Err(Error::request(format!(
                        "attribute '{name}' is {f}: only finite numbers can be stored"
                    )));
                }
                number = f.to_le_bytes();
                (attr_type::F64, &number)
            }
            AttrValue::Bool(b) => {
                flag = [u8::from(*b)];
                (attr_type::BOOL, &flag)
            }
            AttrValue::Remove => (attr_type::NONE, &[]),
        };
        let name_len = u8::try_from(name.len()).ok().filter(|n| *n > 0);
        let name_len =
            name_len.ok_or_else(|| Error::request(format!("attribute name '{name:.20}': it needs 1 to 255 bytes")))?;
        let value_len = u16::try_from(bytes.len())
            .map_err(|_| Error::request(format!("attribute '{name}' has {} bytes, at most 65535 fit", bytes.len())))?;
        out.extend_from_slice(&AttrHead { name_len, ty, value_len }.bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(bytes);
    }
    if out.len() - from > ATTRS_MAX as usize {
        return Err(Error::request(format!(
            "the attributes of a record take {} bytes, at most {ATTRS_MAX} are allowed",
            out.len() - from
        )));
    }
    Ok(())
}

/// Reads encoded attributes.
pub(crate) fn decode(mut b: &[u8]) -> Result<Attrs, Error> {
    const CUT: Error = Error::Protocol("attributes are cut off");
    const BAD: Error = Error::Protocol("an attribute does not fit its type");
    let mut attrs = Attrs::new();
    while !b.is_empty() {
        let h = AttrHead::parse(b).ok_or(CUT)?;
        let name_end = AttrHead::SIZE + usize::from(h.name_len);
        let end = name_end + usize::from(h.value_len);
        let name = b.get(AttrHead::SIZE..name_end).ok_or(CUT)?;
        let value = b.get(name_end..end).ok_or(CUT)?;
        let value = match h.ty {
            attr_type::STRING => match String::from_utf8(value.to_vec()) {
                Ok(s) => AttrValue::String(s),
                Err(e) => AttrValue::Bytes(e.into_bytes()),
            },
            attr_type::I64 => AttrValue::I64(i64::from_le_bytes(value.try_into().map_err(|_| BAD)?)),
            attr_type::F64 => AttrValue::F64(f64::from_le_bytes(value.try_into().map_err(|_| BAD)?)),
            attr_type::BOOL => match value {
                [0] => AttrValue::Bool(false),
                [1] => AttrValue::Bool(true),
                _ => return Err(BAD),
            },
            _ => return Err(Error::Protocol("an attribute has an unknown type")),
        };
        // The name of an extended attribute may be any bytes.
        attrs.insert(String::from_utf8_lossy(name).into_owned(), value);
        b = &b[end..];
    }
    Ok(attrs)
}
