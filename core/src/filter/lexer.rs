// SPDX-License-Identifier: GPL-2.0-only
//! Cuts a filter text into tokens. Owns the spelling of names, strings and numbers.

use super::number::{self, Number, NumberError};
use super::{Compare, FilterError, Span};
use crate::error::Error;
use crate::mem;
use alloc::vec::Vec;

/// A token.
#[derive(Clone, Copy, Debug)]
pub(super) enum Token {
    Name(Span),
    Str(Span),
    Number(Number),
    Compare(Compare),
    Open,
    Close,
    Comma,
    And,
    Or,
    Not,
    In,
    Exists,
    True,
    False,
    End,
}

/// Reads tokens; names and strings go to `bytes` without their quotes and escapes.
pub(super) struct Lexer<'a> {
    pub(super) text: &'a [u8],
    /// Behind the last token.
    pub(super) at: usize,
    /// Start of the last token.
    pub(super) start: usize,
    pub(super) bytes: Vec<u8>,
}

fn is_name_start(c: u8) -> bool {
    c.is_ascii_alphabetic() || c == b'_' || c >= 0x80
}

fn is_name(c: u8) -> bool {
    is_name_start(c) || c.is_ascii_digit() || matches!(c, b'.' | b':' | b'-')
}

/// Word of the language.
fn word(name: &[u8]) -> Option<Token> {
    let words: [(&[u8], Token); 7] = [
        (b"and", Token::And),
        (b"or", Token::Or),
        (b"not", Token::Not),
        (b"in", Token::In),
        (b"exists", Token::Exists),
        (b"true", Token::True),
        (b"false", Token::False),
    ];
    words.iter().find(|(w, _)| w.eq_ignore_ascii_case(name)).map(|(_, t)| *t)
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a [u8]) -> Lexer<'a> {
        Lexer { text, at: 0, start: 0, bytes: Vec::new() }
    }

    /// A mistake at the last token.
    pub(super) fn error(&self, msg: &'static str) -> FilterError {
        FilterError { pos: self.start, error: Error::Invalid, msg }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn bump(&mut self) -> Option<u8> {
        let c = self.peek()?;
        self.at = self.at.saturating_add(1);
        Some(c)
    }

    fn out_of_memory(&self) -> FilterError {
        FilterError { pos: self.start, error: Error::NoMemory, msg: Error::NoMemory.message() }
    }

    fn keep(&mut self, s: &[u8]) -> Result<(), FilterError> {
        mem::extend(&mut self.bytes, s).map_err(|_| self.out_of_memory())
    }

    /// What was kept since `from`. The text is at most 64 KiB and nothing grows, so u32 holds it.
    fn span(&self, from: usize) -> Span {
        Span { from: from as u32, to: self.bytes.len() as u32 }
    }

    /// The next token.
    pub(super) fn next(&mut self) -> Result<Token, FilterError> {
        while self.peek().is_some_and(|c| c.is_ascii_whitespace()) {
            self.at = self.at.saturating_add(1);
        }
        self.start = self.at;
        let Some(c) = self.peek() else { return Ok(Token::End) };
        match c {
            b'"' | b'\'' => return self.string(c),
            b'`' => return self.quoted_name(),
            b'0'..=b'9' | b'.' | b'+' | b'-' => return self.number(),
            _ if is_name_start(c) => {
                let rest = self.text.get(self.start..).unwrap_or_default();
                let len = rest.iter().take_while(|c| is_name(**c)).count();
                let name = rest.get(..len).unwrap_or_default();
                self.at = self.start.saturating_add(len);
                if let Some(t) = word(name) {
                    return Ok(t);
                }
                return self.name(name);
            }
            _ => {}
        }
        self.at = self.at.saturating_add(1);
        let equals = self.peek() == Some(b'=');
        let (token, long) = match (c, equals) {
            (b'=', _) => (Token::Compare(Compare::Eq), equals), // "==" is a common spelling
            (b'!', true) => (Token::Compare(Compare::Ne), true),
            (b'<', true) => (Token::Compare(Compare::Le), true),
            (b'>', true) => (Token::Compare(Compare::Ge), true),
            (b'<', false) => (Token::Compare(Compare::Lt), false),
            (b'>', false) => (Token::Compare(Compare::Gt), false),
            (b'(', _) => (Token::Open, false),
            (b')', _) => (Token::Close, false),
            (b',', _) => (Token::Comma, false),
            (b'!', false) => return Err(self.error("'!' stands for nothing alone: write 'not' or '!='")),
            (b'&', _) => return Err(self.error("unknown character '&': write 'and'")),
            (b'|', _) => return Err(self.error("unknown character '|': write 'or'")),
            _ => return Err(self.error("unknown character")),
        };
        if long {
            self.at = self.at.saturating_add(1);
        }
        Ok(token)
    }

    fn name(&mut self, name: &[u8]) -> Result<Token, FilterError> {
        if name.len() > crate::proto::wire::NAME_MAX as usize {
            return Err(self.error("a name has more than 255 bytes"));
        }
        let from = self.bytes.len();
        self.keep(name)?;
        Ok(Token::Name(self.span(from)))
    }

    fn quoted_name(&mut self) -> Result<Token, FilterError> {
        let from = self.bytes.len();
        self.bump();
        loop {
            match self.bump() {
                None => return Err(self.error("a name that begins with a backtick does not end with one")),
                Some(b'`') if self.peek() == Some(b'`') => {
                    self.bump();
                    self.keep(b"`")?;
                }
                Some(b'`') => break,
                Some(c) => self.keep(&[c])?,
            }
        }
        let span = self.span(from);
        match self.bytes.len().saturating_sub(from) {
            0 => Err(self.error("a name is empty")),
            256.. => Err(self.error("a name has more than 255 bytes")),
            _ => Ok(Token::Name(span)),
        }
    }

    fn string(&mut self, quote: u8) -> Result<Token, FilterError> {
        const OPEN: &str = "a string does not end";
        let from = self.bytes.len();
        self.bump();
        loop {
            let c = match self.bump() {
                None => return Err(self.error(OPEN)),
                Some(c) if c == quote => return Ok(Token::Str(self.span(from))),
                Some(b'\\') => match self.bump() {
                    None => return Err(self.error(OPEN)),
                    Some(b'n') => b'\n',
                    Some(b'r') => b'\r',
                    Some(b't') => b'\t',
                    Some(c @ (b'\\' | b'"' | b'\'')) => c,
                    Some(b'x') => self.hex()?,
                    Some(_) => {
                        self.start = self.at.saturating_sub(2);
                        return Err(self.error("unknown escape: \\\\ \\\" \\' \\n \\r \\t \\xHH are known"));
                    }
                },
                Some(c) => c,
            };
            self.keep(&[c])?;
        }
    }

    fn hex(&mut self) -> Result<u8, FilterError> {
        let start = self.at.saturating_sub(2);
        let mut n = 0u8;
        for _ in 0..2 {
            match self.bump().and_then(|c| char::from(c).to_digit(16)) {
                Some(d) => n = n << 4 | d as u8,
                None => {
                    self.start = start;
                    return Err(self.error("\\x needs two hexadecimal digits"));
                }
            }
        }
        Ok(n)
    }

    fn number(&mut self) -> Result<Token, FilterError> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        match number::prefix(rest) {
            Ok((n, len)) => {
                self.at = self.at.saturating_add(len);
                if self.peek().is_some_and(is_name) {
                    return Err(self.error("a number is followed by something that is not part of it"));
                }
                Ok(Token::Number(n))
            }
            Err(NumberError::TooLarge) => Err(self.error("a number is too large")),
            Err(NumberError::Syntax) => Err(self.error("this is not a number")),
        }
    }
}
