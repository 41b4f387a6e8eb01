//! The stack machine that a pickle is a program for (protocols 0 to 5), as far as files of tensors need it.
//!
//! Every instruction takes at least one byte and makes at most one value, so time and memory are bounded by the file.

use std::collections::HashMap;

use super::calls;
use super::value::{Global, Graph, Id, LONGEST_NAME, Node};

/// One pickle read: its value, and where it ended.
pub(super) struct Pickle {
    pub graph: Graph,
    pub root: Id,
    pub end: usize,
}

/// Reads the pickle that begins at `start`. Errors: a reason with the place.
pub(super) fn read(bytes: &[u8], start: usize) -> Result<Pickle, String> {
    let mut machine =
        Machine { bytes, at: start, graph: Graph::default(), stack: vec![], marks: vec![], memo: HashMap::new() };
    let mut at = start;
    loop {
        match machine.step() {
            Ok(None) => at = machine.at,
            Ok(Some(root)) => return Ok(Pickle { root, end: machine.at, graph: machine.graph }),
            Err(reason) => return Err(format!("{reason} (at byte {at})")),
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    graph: Graph,
    stack: Vec<Id>,
    /// Heights of the stack at each open mark.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

type Step<T> = Result<T, String>;

impl<'a> Machine<'a> {
    /// One instruction; the root at the end.
    fn step(&mut self) -> Step<Option<Id>> {
        let code = self.take(1)?[0];
        match code {
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => match self.marks.last() == Some(&self.stack.len()) {
                true => drop(self.marks.pop()),
                false => drop(self.pop()?),
            },
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            // Protocol, frame: nothing to do but read on.
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'N' => self.push(Node::None)?,
            0x88 | 0x89 => self.push(Node::Int(i64::from(code == 0x88)))?,
            b'I' | b'L' | b'J' | b'K' | b'M' | 0x8a | 0x8b => self.number(code)?,
            b'F' => {
                self.line()?;
                self.push(Node::Opaque)?;
            }
            b'G' => {
                self.take(8)?;
                self.push(Node::Opaque)?;
            }
            b'S' | b'V' | b'T' | b'U' | b'X' | 0x8c | 0x8d => self.text(code)?,
            b'B' | b'C' | 0x8e | 0x96 => {
                let width = match code {
                    b'C' => 1,
                    b'B' => 4,
                    _ => 8,
                };
                let length = self.unsigned(width)?;
                self.take(length)?;
                self.push(Node::Opaque)?;
            }
            b'p' | b'q' | b'r' | 0x94 | b'g' | b'h' | b'j' => self.memo(code)?,
            b'c' | b'i' | 0x93 | b'Q' | b'R' | b'o' | 0x81 | 0x92 | b'b' => self.object(code)?,
            _ => self.container(code)?,
        }
        Ok(None)
    }

    fn number(&mut self, code: u8) -> Step<()> {
        let value = match code {
            b'J' => i64::from(self.unsigned(4)? as u32 as i32),
            b'K' => self.unsigned(1)? as i64,
            b'M' => self.unsigned(2)? as i64,
            0x8a | 0x8b => {
                let length = self.unsigned(if code == 0x8a { 1 } else { 4 })?;
                let bytes = self.take(length)?;
                // A number of more than 64 bits measures no tensor.
                return self.push(if length <= 8 { Node::Int(signed(bytes)) } else { Node::Opaque });
            }
            _ => {
                let line = self.line()?;
                let text = line.strip_suffix('L').unwrap_or(&line);
                return self.push(text.parse().map_or(Node::Opaque, Node::Int));
            }
        };
        self.push(Node::Int(value))
    }

    fn text(&mut self, code: u8) -> Step<()> {
        let text = match code {
            b'S' => self.line()?.trim_matches(['\'', '"']).to_owned(),
            b'V' => self.line()?,
            _ => {
                let width = match code {
                    b'U' | 0x8c => 1,
                    0x8d => 8,
                    _ => 4,
                };
                let length = self.unsigned(width)?;
                String::from_utf8_lossy(self.take(length)?).into_owned()
            }
        };
        self.push(Node::Text(text))
    }

    fn memo(&mut self, code: u8) -> Step<()> {
        let key = match code {
            b'p' | b'g' => self.line()?.parse().map_err(|_| "expected a number after `p` or `g`")?,
            b'q' | b'h' => self.unsigned(1)? as u64,
            b'r' | b'j' => self.unsigned(4)? as u64,
            _ => self.memo.len() as u64,
        };
        if matches!(code, b'g' | b'h' | b'j') {
            let id = *self.memo.get(&key).ok_or("a value is used before it is made")?;
            self.stack.push(id);
        } else {
            let top = self.top()?;
            self.memo.insert(key, top);
        }
        Ok(())
    }

    /// Names, calls and objects: see [`calls`].
    fn object(&mut self, code: u8) -> Step<()> {
        match code {
            b'c' => {
                let global = Global { module: self.line()?, name: self.line()? };
                self.push_global(global)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.graph.node(module), self.graph.node(name)) {
                    (Node::Text(module), Node::Text(name)) if module.len().max(name.len()) <= LONGEST_NAME => {
                        let global = Global { module: module.clone(), name: name.clone() };
                        self.push_global(global)
                    }
                    _ => Err("expected a module and a name as short texts".to_owned()),
                }
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = calls::storage(&self.graph, id)?;
                self.push(Node::Storage(Box::new(storage)))
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let value = calls::call(&mut self.graph, function, arguments)?;
                self.push(value)
            }
            b'i' => {
                let global = Global { module: self.line()?, name: self.line()? };
                calls::check_global(&global)?;
                self.pop_mark()?;
                self.push(Node::Opaque)
            }
            b'o' => {
                self.pop_mark()?;
                self.push(Node::Opaque)
            }
            0x81 | 0x92 => {
                for _ in 0..if code == 0x81 { 2 } else { 3 } {
                    self.pop()?;
                }
                self.push(Node::Opaque)
            }
            // State set on an object: an OrderedDict's attributes (`_metadata`), or an object's, which has no content here.
            _ => self.pop().map(drop),
        }
    }

    fn container(&mut self, code: u8) -> Step<()> {
        match code {
            b')' => self.push(Node::Tuple(Vec::new())),
            b']' | 0x8f => self.push(Node::List(Vec::new())),
            b'}' => self.push(Node::Dict(Vec::new())),
            b't' => {
                let items = self.pop_mark()?;
                self.push(Node::Tuple(items))
            }
            b'l' | 0x91 => {
                let items = self.pop_mark()?;
                self.push(Node::List(items))
            }
            b'd' => {
                let entries = pairs(&self.pop_mark()?)?;
                self.push(Node::Dict(entries))
            }
            0x85..=0x87 => {
                let at = self.stack.len().checked_sub(usize::from(code - 0x84)).filter(|at| *at >= self.floor());
                let items = self.stack.split_off(at.ok_or("a tuple of more values than there are")?);
                self.push(Node::Tuple(items))
            }
            b'a' | b'e' | 0x90 => {
                let items = if code == b'a' { vec![self.pop()?] } else { self.pop_mark()? };
                let top = self.top()?;
                // A list subclass has no content here.
                if let Node::List(list) = self.graph.node_mut(top) {
                    list.extend(items);
                }
                Ok(())
            }
            b's' | b'u' => {
                let items = if code == b'u' {
                    self.pop_mark()?
                } else {
                    let (value, key) = (self.pop()?, self.pop()?);
                    vec![key, value]
                };
                let (entries, top) = (pairs(&items)?, self.top()?);
                if let Node::Dict(dict) = self.graph.node_mut(top) {
                    dict.extend(entries);
                }
                Ok(())
            }
            other => Err(format!("expected an instruction of a torch pickle, found 0x{other:02x}")),
        }
    }

    fn push(&mut self, node: Node) -> Step<()> {
        let id = self.graph.add(node)?;
        self.stack.push(id);
        Ok(())
    }

    fn push_global(&mut self, global: Global) -> Step<()> {
        calls::check_global(&global)?;
        self.push(Node::Global(Box::new(global)))
    }

    /// Below this the stack belongs to what is outside the innermost mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Step<Id> {
        match self.stack.len() > self.floor() {
            true => self.stack.pop().ok_or_else(|| "a value is missing".to_owned()),
            false => Err("a value is missing".to_owned()),
        }
    }

    fn top(&self) -> Step<Id> {
        let above = self.stack.len() > self.floor();
        self.stack.last().copied().filter(|_| above).ok_or_else(|| "a value is missing".to_owned())
    }

    /// Takes what lies above the innermost mark, and the mark.
    fn pop_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or("a mark is missing")?;
        Ok(self.stack.split_off(mark))
    }

    fn take(&mut self, length: usize) -> Step<&'a [u8]> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("expected {length} more byte(s), found the end of the file"))?;
        let bytes = &self.bytes[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn unsigned(&mut self, width: usize) -> Step<usize> {
        let mut bytes = [0u8; 8];
        bytes[..width].copy_from_slice(self.take(width)?);
        usize::try_from(u64::from_le_bytes(bytes)).map_err(|_| "a length is too large".to_owned())
    }

    fn line(&mut self) -> Step<String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().take(1 << 16).position(|b| *b == b'\n').ok_or("expected a line, found no end of it")?;
        self.at += end + 1;
        Ok(String::from_utf8_lossy(&rest[..end]).trim_end_matches('\r').to_owned())
    }
}

fn pairs(items: &[Id]) -> Step<Vec<(Id, Id)>> {
    match items.len().is_multiple_of(2) {
        true => Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()),
        false => Err("expected keys and values in pairs".to_owned()),
    }
}

/// A little-endian two's complement number of at most 8 bytes.
fn signed(bytes: &[u8]) -> i64 {
    let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
    let mut all = [if negative { 0xff } else { 0 }; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    i64::from_le_bytes(all)
}
