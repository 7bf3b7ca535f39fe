/*
 * Numpy's data memory handler (NEP 49): large blocks come from the arena, which is mergeable, all others from
 * numpy's own handler. Mechanism only: the arena is Python (arena.py).
 *
 * Numpy calls these with the GIL or without it, from any thread, while an exception is set, and frees a block
 * long after its handler was put away: an array keeps the handler that made it. So a block says by its address
 * whose it is. Of the arena's methods none raises; what comes out of them all the same, as a KeyboardInterrupt,
 * is not for numpy.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_TARGET_VERSION NPY_1_22_API_VERSION
#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#include <malloc.h>
#include <numpy/arrayobject.h>
#include <stdatomic.h>
#include <stdbool.h>

#define CAPSULE "mem_handler" /* as numpy wants it */

struct handler {
	PyDataMem_Handler numpy;
	size_t min_bytes; /* smaller blocks are numpy's own */
};

static PyObject *arena; /* kept for ever: arrays outlive everything else */
static PyDataMemAllocator *ordinary;
static _Atomic bool is_stopped;
static _Atomic uintptr_t arena_start, arena_end;

static bool is_of_arena(const void *block)
{
	uintptr_t address = (uintptr_t)block;

	return atomic_load(&arena_start) <= address && address < atomic_load(&arena_end);
}

/* Call a method of the arena that takes and returns a number; 0 where it failed. */
static size_t ask_arena(const char *method, size_t number)
{
	PyObject *type, *value, *trace, *answer;
	PyGILState_STATE gil;
	size_t answered = 0;

	if (is_stopped || !arena)
		return 0;
	gil = PyGILState_Ensure();
	PyErr_Fetch(&type, &value, &trace);
	answer = PyObject_CallMethod(arena, method, "K", (unsigned long long)number);
	if (answer)
		answered = PyLong_AsSize_t(answer);
	Py_XDECREF(answer);
	if (PyErr_Occurred()) {
		answered = 0;
		if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) {
			PyErr_Clear();
			PyErr_SetInterrupt(); /* again, when numpy has returned */
		} else {
			PyErr_WriteUnraisable(arena);
		}
	}
	PyErr_Restore(type, value, trace);
	PyGILState_Release(gil);
	return answered;
}

static void *data_malloc(void *ctx, size_t size)
{
	const struct handler *self = ctx;
	void *block = NULL;

	if (size >= self->min_bytes)
		block = (void *)ask_arena("take", size);
	return block ? block : ordinary->malloc(ordinary->ctx, size);
}

static void *data_calloc(void *ctx, size_t nr, size_t each)
{
	const struct handler *self = ctx;
	void *block = NULL;
	size_t size;

	if (__builtin_mul_overflow(nr, each, &size))
		return NULL;
	if (size >= self->min_bytes)
		block = (void *)ask_arena("take",
					  size); /* mapped just now: zeros, and none is there yet */
	return block ? block : ordinary->calloc(ordinary->ctx, nr, each);
}

static void data_free(void *ctx, void *block, size_t size)
{
	(void)ctx;
	if (is_of_arena(block))
		(void)ask_arena("give", (size_t)block);
	else
		ordinary->free(ordinary->ctx, block, size);
}

static void *data_realloc(void *ctx, void *block, size_t size)
{
	const struct handler *self = ctx;
	size_t old;
	void *moved;

	if (!is_of_arena(block) && size < self->min_bytes)
		return ordinary->realloc(ordinary->ctx, block, size);
	old = is_of_arena(block) ? ask_arena("size_of", (size_t)block) : malloc_usable_size(block);
	moved = is_of_arena(block) && !old ? NULL : data_malloc(ctx, size);
	if (!moved)
		return NULL;
	memcpy(moved, block, old < size ? old : size);
	data_free(ctx, block, old);
	return moved;
}

static void handler_free(PyObject *capsule)
{
	PyMem_Free(PyCapsule_GetPointer(capsule, CAPSULE));
}

static PyObject *handler(PyObject *module, PyObject *arg)
{
	struct handler *self;
	PyObject *capsule;
	size_t min_bytes = PyLong_AsSize_t(arg);

	(void)module;
	if (PyErr_Occurred())
		return NULL;
	self = PyMem_Calloc(1, sizeof(*self));
	if (!self)
		return PyErr_NoMemory();
	self->min_bytes = min_bytes;
	self->numpy = (PyDataMem_Handler){
		.name = "ksmemu",
		.version = 1,
		.allocator = { self, data_malloc, data_calloc, data_realloc, data_free },
	};
	capsule = PyCapsule_New(self, CAPSULE, handler_free);
	if (!capsule)
		PyMem_Free(self);
	return capsule;
}

static PyObject *swap(PyObject *module, PyObject *capsule)
{
	(void)module;
	if (!PyCapsule_IsValid(capsule, CAPSULE))
		return PyErr_Format(PyExc_TypeError, "no handler of data memory: %R", capsule);
	return PyDataMem_SetHandler(capsule);
}

static PyObject *serve(PyObject *module, PyObject *object)
{
	(void)module;
	Py_XSETREF(arena, Py_NewRef(object));
	Py_RETURN_NONE;
}

static PyObject *set_bounds(PyObject *module, PyObject *args)
{
	unsigned long long start, end;

	(void)module;
	if (!PyArg_ParseTuple(args, "KK", &start, &end))
		return NULL;
	arena_start = start;
	arena_end = end;
	Py_RETURN_NONE;
}

static PyObject *stop(PyObject *module, PyObject *unused)
{
	(void)module;
	(void)unused;
	is_stopped = true;
	Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
	{ "handler", handler, METH_O, NULL }, { "swap", swap, METH_O, NULL },
	{ "serve", serve, METH_O, NULL },     { "set_bounds", set_bounds, METH_VARARGS, NULL },
	{ "stop", stop, METH_NOARGS, NULL },  { NULL, NULL, 0, NULL },
};

static struct PyModuleDef module_def = {
	PyModuleDef_HEAD_INIT,
	.m_name = "ksmemu.mm._data_memory",
	.m_size = -1,
	.m_methods = methods,
};

PyMODINIT_FUNC PyInit__data_memory(void);

PyMODINIT_FUNC PyInit__data_memory(void)
{
	PyDataMem_Handler *numpy_own;

	import_array();
	numpy_own = PyCapsule_GetPointer(PyDataMem_DefaultHandler, CAPSULE);
	if (!numpy_own)
		return NULL;
	ordinary = &numpy_own->allocator;
	return PyModule_Create(&module_def);
}
