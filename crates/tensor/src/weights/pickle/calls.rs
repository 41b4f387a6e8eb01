//! What a pickle may ask for: the functions by which torch describes tensors, and nothing else.

use tch::Kind;

use super::value::{Global, Graph, Id, Node, Storage, TensorNode};
use crate::weights::view::StoredKind;

/// Modules of which no weights file has business with any part: their functions run programs or open the network.
const REFUSED_MODULES: &[&str] = &[
    "aiohttp",
    "asyncio",
    "bdb",
    "code",
    "codeop",
    "commands",
    "ctypes",
    "ftplib",
    "http",
    "httpx",
    "importlib",
    "marshal",
    "multiprocessing",
    "nt",
    "os",
    "pdb",
    "pip",
    "platform",
    "posix",
    "pty",
    "requests",
    "runpy",
    "shutil",
    "signal",
    "smtplib",
    "socket",
    "ssl",
    "subprocess",
    "sys",
    "telnetlib",
    "tempfile",
    "timeit",
    "urllib",
    "webbrowser",
];
/// Arguments looked at: the functions understood take fewer.
const MOST_ARGUMENTS: usize = 16;
const REFUSED_BUILTINS: &[&str] =
    &["__import__", "apply", "breakpoint", "compile", "eval", "exec", "execfile", "input", "open"];

/// Errors: a reason, where a name is one that runs code.
pub(super) fn check_global(global: &Global) -> Result<(), String> {
    let root = global.module.split('.').next().unwrap_or_default();
    let builtin = matches!(global.module.as_str(), "builtins" | "__builtin__");
    // A dotted name reaches further: `torch.serialization` has `os`.
    let reached = global.name.split('.').any(|part| REFUSED_MODULES.contains(&part) && global.name.contains('.'));
    let refused = REFUSED_MODULES.contains(&root) || builtin && REFUSED_BUILTINS.contains(&global.name.as_str());
    if refused || reached {
        let name = format!("{}.{}", global.module, global.name);
        return Err(format!(
            "the file asks to run `{name}`, which no weights need; nothing was run, and do not open it with Python"
        ));
    }
    Ok(())
}

/// The value of calling `function` with `arguments`: nothing is called, see the module's notes. Errors: a reason, where
/// the arguments of a known function are not what torch writes.
pub(super) fn call(graph: &mut Graph, function: Id, arguments: Id) -> Result<Node, String> {
    let Node::Global(global) = graph.node(function) else { return Ok(Node::Opaque) };
    let Global { module, name } = &**global;
    let arguments: Vec<Id> = match graph.node(arguments) {
        Node::Tuple(items) => items.iter().take(MOST_ARGUMENTS).copied().collect(),
        _ => return Err(format!("expected a tuple of arguments for `{module}.{name}`")),
    };
    match (module.as_str(), name.as_str()) {
        ("collections", "OrderedDict") => ordered_dict(graph, &arguments),
        ("builtins" | "__builtin__", "set" | "frozenset") => Ok(Node::Opaque),
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => rebuild_tensor(graph, &arguments, None),
        ("torch._utils", "_rebuild_tensor_v3") => {
            let kind = arguments.get(6).map(|id| dtype_of(graph, *id)).ok_or("expected 7 arguments for a tensor")?;
            rebuild_tensor(graph, &arguments, Some(kind))
        }
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
            match arguments.first().map(|data| graph.node(*data)) {
                Some(Node::Tensor(tensor)) => Ok(Node::Tensor(tensor.clone())),
                _ => Err("expected a parameter's tensor".to_owned()),
            }
        }
        ("torch._tensor", "_rebuild_from_type_v2") => match arguments[..] {
            // A tensor of a subclass: function, class, arguments, state.
            [function, _, arguments, ..] if is_rebuild(graph, function) => call(graph, function, arguments),
            _ => Ok(Node::Opaque),
        },
        _ => Ok(Node::Opaque),
    }
}

/// Bounds the recursion of [`call`]: a subclass's tensor is rebuilt by one of torch's plain functions.
fn is_rebuild(graph: &Graph, function: Id) -> bool {
    matches!(graph.node(function), Node::Global(g) if g.module == "torch._utils")
}

/// `OrderedDict()` or `OrderedDict([(key, value), ...])`.
fn ordered_dict(graph: &mut Graph, arguments: &[Id]) -> Result<Node, String> {
    let Some(id) = arguments.first() else { return Ok(Node::Dict(Vec::new())) };
    let (Node::List(items) | Node::Tuple(items)) = graph.node(*id) else { return Ok(Node::Opaque) };
    graph.charge(items.len())?;
    let (Node::List(items) | Node::Tuple(items)) = graph.node(*id) else { return Ok(Node::Opaque) };
    let pair = |item: &Id| match graph.node(*item) {
        Node::Tuple(pair) | Node::List(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
        _ => Err("expected pairs of key and value for an OrderedDict".to_owned()),
    };
    Ok(Node::Dict(items.iter().map(pair).collect::<Result<_, _>>()?))
}

/// `(storage, offset, size, stride, ...)`.
fn rebuild_tensor(graph: &Graph, arguments: &[Id], kind: Option<StoredKind>) -> Result<Node, String> {
    let [storage, offset, shape, strides, ..] = arguments else {
        return Err(format!("expected 4 or more arguments for a tensor, found {}", arguments.len()));
    };
    let Node::Storage(storage) = graph.node(*storage) else {
        return Err("expected a tensor's first argument to be its storage".to_owned());
    };
    let offset = graph.integer(*offset, "a tensor's offset")?;
    Ok(Node::Tensor(Box::new(TensorNode {
        offset: offset.checked_add(storage.base).ok_or("a tensor's offset is too large")?,
        storage: Storage::clone(storage),
        kind,
        shape: graph.integers(*shape, "a tensor's shape")?,
        strides: graph.integers(*strides, "a tensor's strides")?,
    })))
}

/// The storage that a persistent id `('storage', class, key, device, count[, view])` names.
pub(super) fn storage(graph: &Graph, id: Id) -> Result<Storage, String> {
    let wrong = || "expected a storage: ('storage', class, key, device, count)".to_owned();
    let Node::Tuple(fields) = graph.node(id) else { return Err(wrong()) };
    let [tag, class, key, _device, count, rest @ ..] = fields.as_slice() else { return Err(wrong()) };
    if !matches!(graph.node(*tag), Node::Text(text) if text == "storage") {
        return Err(wrong());
    }
    let kind = match graph.node(*class) {
        Node::Global(global) => storage_kind(&global.name),
        _ => return Err(wrong()),
    };
    // A view of the earliest files: (key, offset, size).
    let base = match rest.first().map(|view| graph.node(*view)) {
        Some(Node::Tuple(view)) if view.len() == 3 => graph.integer(view[1], "a view's offset")?,
        _ => 0,
    };
    let count = graph.integer(*count, "a storage's size")?;
    if count < 0 || base < 0 {
        return Err(format!("expected a storage's size and offset to be 0 or more, found {count} and {base}"));
    }
    Ok(Storage { key: graph.key_name(*key).ok_or_else(wrong)?, kind, count, base })
}

/// The dtype of a storage class, e.g. `FloatStorage`; an untyped storage is one of bytes.
fn storage_kind(class: &str) -> StoredKind {
    Ok(match class {
        "FloatStorage" => Kind::Float,
        "HalfStorage" => Kind::Half,
        "BFloat16Storage" => Kind::BFloat16,
        "DoubleStorage" => Kind::Double,
        "LongStorage" => Kind::Int64,
        "IntStorage" => Kind::Int,
        "ShortStorage" => Kind::Int16,
        "CharStorage" => Kind::Int8,
        "ByteStorage" | "UntypedStorage" => Kind::Uint8,
        "BoolStorage" => Kind::Bool,
        other => return Err(other.to_owned()),
    })
}

/// The dtype of a `torch.float32` and the like.
fn dtype_of(graph: &Graph, id: Id) -> StoredKind {
    let Node::Global(global) = graph.node(id) else { return Err("unknown".to_owned()) };
    Ok(match global.name.as_str() {
        "float32" => Kind::Float,
        "float16" => Kind::Half,
        "bfloat16" => Kind::BFloat16,
        "float64" => Kind::Double,
        "int64" => Kind::Int64,
        "int32" => Kind::Int,
        "int16" => Kind::Int16,
        "int8" => Kind::Int8,
        "uint8" => Kind::Uint8,
        "bool" => Kind::Bool,
        other => return Err(other.to_owned()),
    })
}
