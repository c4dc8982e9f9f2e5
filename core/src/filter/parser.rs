// SPDX-License-Identifier: GPL-2.0-only
//! Compiles a filter: precedence climbing with a stack of its own. `a and b` becomes: a, jump over b if
//! false, b. So the program needs no stack when it runs.

use super::lexer::{Lexer, Token};
use super::{Compare, Filter, FilterError, Literal, Node, Span};
use crate::error::Error;
use crate::mem;
use alloc::vec::Vec;

/// Longest text of a filter in bytes.
pub const FILTER_TEXT_MAX: usize = crate::proto::wire::FILTER_MAX as usize;
/// Most nodes of a program: tests and what joins them.
pub const FILTER_NODES_MAX: usize = 4096;

/// What waits for its right side.
#[derive(Clone, Copy)]
enum Pending {
    Open {
        pos: usize,
    },
    Not,
    /// The jump over the right side, to be pointed behind it.
    And {
        jump: usize,
    },
    Or {
        jump: usize,
    },
}

impl Pending {
    fn strength(self) -> u8 {
        match self {
            Pending::Open { .. } => 0,
            Pending::Or { .. } => 1,
            Pending::And { .. } => 2,
            Pending::Not => 3,
        }
    }
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    names: Vec<Span>,
    literals: Vec<Literal>,
    nodes: Vec<Node>,
    pending: Vec<Pending>,
}

fn value_expected(c: Compare) -> &'static str {
    match c {
        Compare::Eq => "expected a value after '='",
        Compare::Ne => "expected a value after '!='",
        Compare::Lt => "expected a value after '<'",
        Compare::Le => "expected a value after '<='",
        Compare::Gt => "expected a value after '>'",
        Compare::Ge => "expected a value after '>='",
    }
}

impl Parser<'_> {
    fn no_memory(&self) -> FilterError {
        FilterError { pos: self.lexer.start, error: Error::NoMemory, msg: Error::NoMemory.message() }
    }

    fn emit(&mut self, node: Node) -> Result<(), FilterError> {
        if self.nodes.len() >= FILTER_NODES_MAX {
            let msg = "the filter is too large (4096 tests and operators)";
            return Err(FilterError { pos: self.lexer.start, error: Error::TooBig, msg });
        }
        mem::push(&mut self.nodes, node).map_err(|_| self.no_memory())
    }

    fn push(&mut self, p: Pending) -> Result<(), FilterError> {
        // Also bounds the depth of parentheses.
        if self.pending.len() >= FILTER_NODES_MAX {
            let msg = "the filter is nested too deeply";
            return Err(FilterError { pos: self.lexer.start, error: Error::TooBig, msg });
        }
        mem::push(&mut self.pending, p).map_err(|_| self.no_memory())
    }

    /// Ends everything that binds at least as tightly as `strength`.
    fn reduce(&mut self, strength: u8) -> Result<(), FilterError> {
        while let Some(p) = self.pending.last().copied().filter(|p| p.strength() >= strength) {
            self.pending.pop();
            let here = self.nodes.len() as u32;
            match p {
                Pending::Open { .. } => {}
                Pending::Not => self.emit(Node::Not)?,
                Pending::And { jump } => {
                    if let Some(n) = self.nodes.get_mut(jump) {
                        *n = Node::IfFalse(here);
                    }
                }
                Pending::Or { jump } => {
                    if let Some(n) = self.nodes.get_mut(jump) {
                        *n = Node::IfTrue(here);
                    }
                }
            }
        }
        Ok(())
    }

    fn name(&mut self, span: Span) -> Result<u32, FilterError> {
        let bytes = |s: &Span| self.lexer.bytes.get(s.from as usize..s.to as usize);
        let name = bytes(&span);
        // Only the first few are looked through, so that a hostile filter costs no quadratic time.
        if let Some(i) = self.names.iter().take(64).position(|s| bytes(s) == name) {
            return Ok(i as u32);
        }
        mem::push(&mut self.names, span).map_err(|_| self.no_memory())?;
        Ok(self.names.len().saturating_sub(1) as u32)
    }

    /// The literal that is the next token.
    fn value(&mut self, expected: &'static str) -> Result<Literal, FilterError> {
        match self.lexer.next()? {
            Token::Number(n) => Ok(Literal::Number(n)),
            Token::Str(s) => Ok(Literal::Str(s)),
            Token::True => Ok(Literal::Bool(true)),
            Token::False => Ok(Literal::Bool(false)),
            Token::Name(_) => Err(self.lexer.error("expected a value; strings go in quotes")),
            _ => Err(self.lexer.error(expected)),
        }
    }

    fn literal(&mut self, l: Literal) -> Result<u32, FilterError> {
        mem::push(&mut self.literals, l).map_err(|_| self.no_memory())?;
        Ok(self.literals.len().saturating_sub(1) as u32)
    }

    /// What follows the name of a test.
    fn test(&mut self, name: u32) -> Result<(), FilterError> {
        match self.lexer.next()? {
            Token::Compare(compare) => {
                let l = self.value(value_expected(compare))?;
                if matches!(l, Literal::Bool(_)) && !matches!(compare, Compare::Eq | Compare::Ne) {
                    return Err(self.lexer.error("true and false compare with '=' and '!=' only"));
                }
                let value = self.literal(l)?;
                self.emit(Node::Test { name, compare, value })
            }
            Token::In => {
                let (from, to) = self.list()?;
                self.emit(Node::In { name, from, to })
            }
            Token::Not => {
                if !matches!(self.lexer.next()?, Token::In) {
                    return Err(self.lexer.error("expected 'in' after 'not'"));
                }
                let (from, to) = self.list()?;
                self.emit(Node::NotIn { name, from, to })
            }
            _ => Err(self.lexer.error("expected a comparison (= != < <= > >= in) after the name")),
        }
    }

    /// The list of values that follows `in`: the numbers of its literals.
    fn list(&mut self) -> Result<(u32, u32), FilterError> {
        if !matches!(self.lexer.next()?, Token::Open) {
            return Err(self.lexer.error("expected '(' after 'in'"));
        }
        let from = self.literals.len() as u32;
        let mut expected = "expected a value after '('";
        loop {
            let l = self.value(expected)?;
            self.literal(l)?;
            match self.lexer.next()? {
                Token::Comma => expected = "expected a value after ','",
                Token::Close => return Ok((from, self.literals.len() as u32)),
                _ => return Err(self.lexer.error("expected ',' or ')' in the list")),
            }
        }
    }

    /// What follows `exists`.
    fn exists(&mut self) -> Result<(), FilterError> {
        if !matches!(self.lexer.next()?, Token::Open) {
            return Err(self.lexer.error("expected '(' after 'exists'"));
        }
        let Token::Name(span) = self.lexer.next()? else {
            return Err(self.lexer.error("expected the name of an attribute"));
        };
        let name = self.name(span)?;
        if !matches!(self.lexer.next()?, Token::Close) {
            return Err(self.lexer.error("expected ')' after the name"));
        }
        self.emit(Node::Exists { name })
    }

    /// One test with what stands before it: `not` and `(`.
    fn operand(&mut self) -> Result<(), FilterError> {
        loop {
            match self.lexer.next()? {
                Token::Not => self.push(Pending::Not)?,
                Token::Open => {
                    let pos = self.lexer.start;
                    self.push(Pending::Open { pos })?;
                }
                Token::Exists => return self.exists(),
                Token::Name(span) => {
                    let name = self.name(span)?;
                    return self.test(name);
                }
                Token::End => {
                    return Err(self.lexer.error("the filter ends too early: expected the name of an attribute"))
                }
                Token::Number(_) | Token::Str(_) | Token::True | Token::False => {
                    return Err(self
                        .lexer
                        .error("expected the name of an attribute (names are not quoted, or in backticks)"));
                }
                Token::And | Token::Or | Token::In => {
                    return Err(self
                        .lexer
                        .error("expected the name of an attribute (a name that is also a word goes in backticks)"));
                }
                _ => return Err(self.lexer.error("expected the name of an attribute")),
            }
        }
    }

    fn filter(&mut self) -> Result<(), FilterError> {
        loop {
            self.operand()?;
            loop {
                match self.lexer.next()? {
                    Token::And => {
                        self.reduce(2)?;
                        let jump = self.nodes.len();
                        self.emit(Node::IfFalse(0))?;
                        self.push(Pending::And { jump })?;
                        break;
                    }
                    Token::Or => {
                        self.reduce(1)?;
                        let jump = self.nodes.len();
                        self.emit(Node::IfTrue(0))?;
                        self.push(Pending::Or { jump })?;
                        break;
                    }
                    Token::Close => {
                        self.reduce(1)?;
                        if self.pending.pop().is_none() {
                            return Err(self.lexer.error("there is no '(' for this ')'"));
                        }
                    }
                    Token::End => {
                        self.reduce(1)?;
                        if let Some(Pending::Open { pos }) = self.pending.last() {
                            return Err(FilterError {
                                pos: *pos,
                                error: Error::Invalid,
                                msg: "there is no ')' for this '('",
                            });
                        }
                        return Ok(());
                    }
                    _ => return Err(self.lexer.error("expected 'and', 'or' or the end of the filter")),
                }
            }
        }
    }
}

pub(super) fn parse(text: &[u8]) -> Result<Filter, FilterError> {
    if text.len() > FILTER_TEXT_MAX {
        return Err(FilterError { pos: 0, error: Error::TooBig, msg: "the filter has more than 65536 bytes" });
    }
    let mut p = Parser {
        lexer: Lexer::new(text),
        names: Vec::new(),
        literals: Vec::new(),
        nodes: Vec::new(),
        pending: Vec::new(),
    };
    p.filter()?;
    Ok(Filter { bytes: p.lexer.bytes, names: p.names, literals: p.literals, nodes: p.nodes })
}
