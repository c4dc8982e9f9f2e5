// SPDX-License-Identifier: GPL-2.0-only
//! The filter language: which records a search, a list or a delete is about.
//!
//! ```text
//! filter     = filter "or" filter | filter "and" filter | "not" filter | "(" filter ")" | test
//! test       = name ("=" | "!=" | "<" | "<=" | ">" | ">=") value
//!            | name [ "not" ] "in" "(" value { "," value } ")"
//!            | "exists" "(" name ")"
//! name       = a letter, "_" or a byte above 127, then also digits, ".", ":", "-"; or anything in `backticks`
//! value      = number | "string" | 'string' | true | false
//! ```
//!
//! `not` binds more tightly than `and`, `and` more than `or`. Words may be written in capitals. A name that is also a word
//! goes in backticks, a backtick in a name is doubled. Strings know `\\ \" \' \n \r \t \xHH`.
//!
//! A comparison with an attribute that is missing, or of another type than the value, is false (`!=`
//! too); `not` negates that. `a not in (…)` is such a comparison: true if `a` can be compared with one of the
//! values at least and equals none. Integers and floats compare exactly. A file's extended attributes are text
//! ([`Value::Text`]): a number or a boolean meets one only if it wholly is one. Strings compare by bytes.
//! An integer beyond i64 is taken as the nearest f64.
//!
//! A filter is compiled to a straight program with jumps; neither the parser nor the evaluator recurses.

pub mod attrs;
mod lexer;
pub mod number;
mod parser;

#[cfg(test)]
mod tests;

pub use attrs::Value;
pub use parser::{FILTER_NODES_MAX, FILTER_TEXT_MAX};

use crate::error::{Error, Step};
use crate::proto::{Failure, Text};
use alloc::vec::Vec;
use core::cmp::Ordering;
use number::Number;

/// Why a text is no filter.
#[derive(Clone, Copy, Debug)]
pub struct FilterError {
    /// Byte of the text where it shows.
    pub pos: usize,
    /// `NoMemory`, `TooBig`, or `Invalid` for a mistake in the text.
    pub error: Error,
    /// What is wrong there.
    pub msg: &'static str,
}

impl From<FilterError> for Failure {
    fn from(e: FilterError) -> Failure {
        let text = Text::of(format_args!("filter, byte {}: {}", e.pos, e.msg));
        Failure { text, ..Failure::from(e.error) }.at(e.pos)
    }
}

/// How an attribute is compared with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

impl Compare {
    fn holds(self, o: Ordering) -> bool {
        match self {
            Compare::Eq => o.is_eq(),
            Compare::Ne => o.is_ne(),
            Compare::Lt => o.is_lt(),
            Compare::Le => o.is_le(),
            Compare::Gt => o.is_gt(),
            Compare::Ge => o.is_ge(),
        }
    }
}

/// A range of [`Filter::bytes`].
#[derive(Clone, Copy, Debug)]
struct Span {
    from: u32,
    to: u32,
}

/// A value in a filter.
#[derive(Clone, Copy, Debug)]
enum Literal {
    Number(Number),
    Str(Span),
    Bool(bool),
}

/// One step of a filter's program. A test sets the result; the jumps look at it.
#[derive(Clone, Copy, Debug)]
enum Node {
    /// Attribute `name` against literal `value`.
    Test { name: u32, compare: Compare, value: u32 },
    /// Attribute `name` equals one of the literals from `from` to before `to`.
    In { name: u32, from: u32, to: u32 },
    /// Attribute `name` can be compared with one of those literals and equals none.
    NotIn { name: u32, from: u32, to: u32 },
    /// Attribute `name` is there.
    Exists { name: u32 },
    /// Negates the result.
    Not,
    /// Goes on at the node if the result is false.
    IfFalse(u32),
    /// Goes on at the node if the result is true.
    IfTrue(u32),
}

/// Where a filter finds attributes.
pub trait Source {
    /// The attribute `name`. May stop when it is not in memory.
    fn attr(&mut self, name: &[u8]) -> Step<Option<Value<'_>>>;
}

/// A record's encoded attributes as a source.
#[derive(Clone, Copy, Debug)]
pub struct Encoded<'a>(pub &'a [u8]);

impl Source for Encoded<'_> {
    fn attr(&mut self, name: &[u8]) -> Step<Option<Value<'_>>> {
        Ok(attrs::lookup(self.0, name))
    }
}

/// A filter, ready to be evaluated.
#[derive(Debug)]
pub struct Filter {
    /// Names and strings.
    bytes: Vec<u8>,
    /// Names; one may be there twice if there are very many.
    names: Vec<Span>,
    literals: Vec<Literal>,
    nodes: Vec<Node>,
}

/// The order of an attribute and a literal; `None` if they do not meet.
fn order(value: &Value<'_>, literal: Literal, bytes: &[u8]) -> Option<Ordering> {
    match (value, literal) {
        (Value::I64(a), Literal::Number(b)) => number::cmp(Number::I64(*a), b),
        (Value::F64(a), Literal::Number(b)) => number::cmp(Number::F64(*a), b),
        (Value::Text(t), Literal::Number(b)) => number::cmp(number::parse(t)?, b),
        (Value::Str(a) | Value::Text(a), Literal::Str(b)) => {
            let b = bytes.get(b.from as usize..b.to as usize)?;
            Some((*a).cmp(b))
        }
        (Value::Bool(a), Literal::Bool(b)) => Some(a.cmp(&b)),
        (Value::Text(b"true"), Literal::Bool(b)) => Some(true.cmp(&b)),
        (Value::Text(b"false"), Literal::Bool(b)) => Some(false.cmp(&b)),
        _ => None,
    }
}

impl Filter {
    /// Compiles a filter.
    pub fn parse(text: &[u8]) -> Result<Filter, FilterError> {
        parser::parse(text)
    }

    /// The names of the attributes that it asks for; one may come twice if there are very many.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.names.iter().filter_map(|s| self.bytes.get(s.from as usize..s.to as usize))
    }

    fn name(&self, i: u32) -> Step<&[u8]> {
        let s = self.names.get(i as usize);
        Ok(s.and_then(|s| self.bytes.get(s.from as usize..s.to as usize)).ok_or(Error::Invalid)?)
    }

    /// Whether a record with the attributes of `source` matches. What is not needed for the answer is not
    /// asked for.
    pub fn eval(&self, source: &mut dyn Source) -> Step<bool> {
        let mut result = false;
        let mut at = 0usize;
        while let Some(node) = self.nodes.get(at) {
            at = at.saturating_add(1);
            match *node {
                Node::Test { name, compare, value } => {
                    let literal = *self.literals.get(value as usize).ok_or(Error::Invalid)?;
                    let v = source.attr(self.name(name)?)?;
                    result = v.and_then(|v| order(&v, literal, &self.bytes)).is_some_and(|o| compare.holds(o));
                }
                Node::In { name, from, to } => {
                    let literals = self.literals.get(from as usize..to as usize).ok_or(Error::Invalid)?;
                    let v = source.attr(self.name(name)?)?;
                    result =
                        v.is_some_and(|v| literals.iter().any(|l| order(&v, *l, &self.bytes) == Some(Ordering::Equal)));
                }
                Node::NotIn { name, from, to } => {
                    let literals = self.literals.get(from as usize..to as usize).ok_or(Error::Invalid)?;
                    let v = source.attr(self.name(name)?)?;
                    result = v.is_some_and(|v| {
                        let mut met = false;
                        literals.iter().filter_map(|l| order(&v, *l, &self.bytes)).all(|o| {
                            met = true;
                            o.is_ne()
                        }) && met
                    });
                }
                Node::Exists { name } => result = source.attr(self.name(name)?)?.is_some(),
                Node::Not => result = !result,
                Node::IfFalse(to) if !result => at = to as usize,
                Node::IfTrue(to) if result => at = to as usize,
                Node::IfFalse(_) | Node::IfTrue(_) => {}
            }
        }
        Ok(result)
    }
}
