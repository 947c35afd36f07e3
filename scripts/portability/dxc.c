/* Asks DXC, Microsoft's compiler of HLSL, about many compute shaders in one process: under Wine the start
 * costs more than a shader.
 *
 * usage: dxc.exe LIST
 *
 * Each line of LIST is the path of a text whose name tells its target, as in NAME.cs_6_0.hlsl. For each a
 * line goes out: "NAME.cs_6_0: ok", or the first line of what DXC says instead of "ok".
 */
#include <fcntl.h>
#include <initguid.h>
#include <io.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>

DEFINE_GUID(CLSID_DxcCompiler, 0x73e22d93, 0xe6ce, 0x47f3, 0xb5, 0xbf, 0xf0, 0x66, 0x4f, 0x39, 0xc1, 0xb0);
DEFINE_GUID(IID_IDxcCompiler3, 0x228b4687, 0x5a6a, 0x4730, 0x90, 0x0c, 0x97, 0x02, 0xb2, 0x20, 0x3f, 0x54);
DEFINE_GUID(IID_IDxcResult, 0x58346cda, 0xdde7, 0x4497, 0x94, 0x61, 0x6f, 0x87, 0xaf, 0x5e, 0x06, 0x59);

/* The interfaces of dxcapi.h, which mingw lacks, as far as they are called here. */

#define IUNKNOWN(Self)                                                                                       \
    HRESULT(WINAPI *query)(Self *, REFIID, void **);                                                         \
    ULONG(WINAPI *add_ref)(Self *);                                                                          \
    ULONG(WINAPI *release)(Self *);

typedef struct Blob {
    struct {
        IUNKNOWN(struct Blob)
        const char *(WINAPI *pointer)(struct Blob *);
        SIZE_T(WINAPI *size)(struct Blob *);
    } *does;
} Blob;

typedef struct Result {
    struct {
        IUNKNOWN(struct Result)
        HRESULT(WINAPI *status)(struct Result *, HRESULT *);
        HRESULT(WINAPI *object)(struct Result *, Blob **);
        HRESULT(WINAPI *errors)(struct Result *, Blob **);
    } *does;
} Result;

typedef struct Text {
    const char *bytes;
    SIZE_T size;
    UINT code_page;
} Text;

typedef struct Compiler {
    struct {
        IUNKNOWN(struct Compiler)
        HRESULT(WINAPI *compile)
        (struct Compiler *, const Text *, const wchar_t **arguments, UINT32 count, void *includes, REFIID, void **);
    } *does;
} Compiler;

typedef HRESULT(WINAPI *Create)(REFCLSID, REFIID, void **);

static void fail(const char *what, const char *path) {
    fprintf(stderr, "dxc: %s %s\n", what, path);
    exit(2);
}

static Text read_text(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) fail("can't open", path);
    long size = ftell(file);
    rewind(file);
    char *bytes = malloc(size + 1);
    if (!bytes || fread(bytes, 1, size, file) != (size_t)size) fail("can't read", path);
    fclose(file);
    return (Text){bytes, size, CP_UTF8};
}

/* Where the first line that tells of an error begins, or the whole. */
static const char *first_error(const char *messages) {
    const char *at = strstr(messages, "error");
    while (at && at > messages && at[-1] != '\n') at--;
    return at ? at : messages;
}

static void check(Compiler *compiler, const char *path) {
    const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    const char *target = strstr(name, ".cs_");
    const char *end = strstr(name, ".hlsl");
    if (!target || !end) fail("no target in the name of", path);
    wchar_t wide[16];
    swprintf(wide, 16, L"%.*hs", (int)(end - target - 1), target + 1);

    /* What wgpu passes, in this order: the 16-bit types where the adapter has them, so with newer models. */
    const wchar_t *arguments[] = {L"-E", L"main", L"-T", wide, L"-HV", L"2018", L"-no-warnings", L"-Ges",
                                  L"-enable-16bit-types"};
    UINT32 count = wcscmp(wide, L"cs_6_2") < 0 ? 8 : 9;

    Text text = read_text(path);
    Result *result = NULL;
    Blob *errors = NULL;
    HRESULT status = compiler->does->compile(compiler, &text, arguments, count, NULL, &IID_IDxcResult, (void **)&result);
    if (SUCCEEDED(status)) {
        result->does->status(result, &status);
        result->does->errors(result, &errors);
    }
    /* wgpu, too, refuses a shader that anything is said about. */
    printf("%.*s: ", (int)(end - name), name);
    if (errors && errors->does->size(errors) > 1) {
        const char *message = first_error(errors->does->pointer(errors));
        printf("%.*s\n", (int)strcspn(message, "\r\n"), message);
    } else if (FAILED(status)) {
        printf("failed with %08lx\n", (unsigned long)status);
    } else {
        printf("ok\n");
    }
    fflush(stdout);
    if (errors) errors->does->release(errors);
    if (result) result->does->release(result);
    free((void *)text.bytes);
}

int main(int count, char **arguments) {
    if (count != 2) fail("usage: dxc.exe", "LIST");
    /* Lines end as in the text files of the system that Wine runs on. */
    _setmode(_fileno(stdout), _O_BINARY);
    HMODULE dll = LoadLibraryA("dxcompiler.dll");
    Create create = dll ? (Create)GetProcAddress(dll, "DxcCreateInstance") : NULL;
    Compiler *compiler = NULL;
    if (!create || FAILED(create(&CLSID_DxcCompiler, &IID_IDxcCompiler3, (void **)&compiler)))
        fail("can't start", "dxcompiler.dll");
    FILE *list = fopen(arguments[1], "r");
    if (!list) fail("can't open", arguments[1]);
    char path[MAX_PATH];
    while (fgets(path, sizeof path, list)) {
        path[strcspn(path, "\r\n")] = 0;
        check(compiler, path);
    }
    return 0;
}
