//! The values a pickle describes: a flat list of nodes that name each other by number, so that neither sharing nor
//! nesting costs memory or stack.

use crate::weights::view::StoredKind;

/// A node's number.
pub(super) type Id = u32;

/// Values in one pickle; Stable Diffusion's own checkpoints have some 50,000.
const MOST_NODES: usize = 4_000_000;
/// Bytes of a name of a tensor, a storage, a class.
pub(super) const LONGEST_NAME: usize = 1000;
/// Axes of a tensor; libtorch has at most 64.
const MOST_AXES: usize = 64;

/// One value. Small, since a file of a few megabytes can have millions: what is rare and large lies elsewhere.
#[derive(Clone, Debug)]
pub(super) enum Node {
    None,
    Int(i64),
    Text(String),
    Tuple(Vec<Id>),
    /// Also sets.
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function by its name; it is never looked up.
    Global(Box<Global>),
    Storage(Box<Storage>),
    Tensor(Box<TensorNode>),
    /// Anything that no tensor depends on: numbers with a fraction, bytes, objects of any class.
    Opaque,
}

/// A class or function by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Global {
    pub module: String,
    pub name: String,
}

/// A block of numbers, which lies outside of the pickle.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    pub key: String,
    pub kind: StoredKind,
    /// Elements it should hold.
    pub count: i64,
    /// Where tensors' offsets count from, in elements: not 0 for views in the earliest files.
    pub base: i64,
}

/// A tensor: how it lies in its storage, in elements.
#[derive(Clone, Debug)]
pub(super) struct TensorNode {
    pub storage: Storage,
    /// The dtype, where the storage has none of its own.
    pub kind: Option<StoredKind>,
    pub offset: i64,
    pub shape: Vec<i64>,
    pub strides: Vec<i64>,
}

/// All values of a pickle.
#[derive(Default)]
pub(super) struct Graph {
    nodes: Vec<Node>,
    /// Entries copied from one value to another: a value may be copied often, so the file's size does not bound this.
    copied: usize,
}

impl Graph {
    /// Adds a value. Errors: a reason, where there are too many.
    pub fn add(&mut self, node: Node) -> Result<Id, String> {
        if self.nodes.len() >= MOST_NODES {
            return Err(format!("expected at most {MOST_NODES} values, found more"));
        }
        self.nodes.push(node);
        Ok((self.nodes.len() - 1) as Id)
    }

    /// Notes that `count` entries are copied. Errors: a reason, where there are too many.
    pub fn charge(&mut self, count: usize) -> Result<(), String> {
        self.copied += count;
        match self.copied <= MOST_NODES {
            true => Ok(()),
            false => Err(format!("expected at most {MOST_NODES} copies of values, found more")),
        }
    }

    pub fn node(&self, id: Id) -> &Node {
        // Ids come from `add` only.
        &self.nodes[id as usize]
    }

    pub fn node_mut(&mut self, id: Id) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    /// The value a dictionary holds under a text; the last one, as in Python.
    pub fn entry(&self, dict: Id, name: &str) -> Option<Id> {
        let Node::Dict(entries) = self.node(dict) else { return None };
        let is_named = |key: Id| matches!(self.node(key), Node::Text(text) if text == name);
        entries.iter().rev().find(|(key, _)| is_named(*key)).map(|(_, value)| *value)
    }

    /// A key as part of a tensor's name; `None` for keys that are neither integers nor texts of at most
    /// [`LONGEST_NAME`] bytes (classes, in Lightning's).
    pub fn key_name(&self, key: Id) -> Option<String> {
        match self.node(key) {
            Node::Text(text) if text.len() <= LONGEST_NAME => Some(text.clone()),
            Node::Int(n) => Some(n.to_string()),
            _ => None,
        }
    }

    /// Every storage that is named anywhere.
    pub fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Storage(storage) => Some(storage.as_ref()),
            _ => None,
        })
    }

    /// Whether a value is a tensor or a dictionary.
    pub fn may_hold_tensors(&self, id: Id) -> bool {
        matches!(self.node(id), Node::Tensor(_) | Node::Dict(_))
    }

    /// Integers of a tuple or list. Errors: a reason, naming `what`.
    pub fn integers(&self, id: Id, what: &str) -> Result<Vec<i64>, String> {
        let (Node::Tuple(items) | Node::List(items)) = self.node(id) else {
            return Err(format!("expected a tuple of integers as {what}"));
        };
        if items.len() > MOST_AXES {
            return Err(format!("expected at most {MOST_AXES} integers as {what}, found {}", items.len()));
        }
        items.iter().map(|item| self.integer(*item, what)).collect()
    }

    /// An integer. Errors: a reason, naming `what`.
    pub fn integer(&self, id: Id, what: &str) -> Result<i64, String> {
        match self.node(id) {
            Node::Int(n) => Ok(*n),
            _ => Err(format!("expected an integer as {what}")),
        }
    }
}
