.intel_syntax noprefix
# rsp: argc, our name, the script, its arguments, 0, the environment
lea rbx, [rip + python]
mov rdi, rbx
xor eax, eax
push -1
pop rcx
repne scasb
mov r14, rdi            # options
lea r15, [rdi - 1]      # ""
mov rax, [rsp]
lea r13, [rsp + 8*rax + 16]   # environment
mov [rsp], rbx
mov [rsp + 8], r14
mov rbp, rsp            # python, options, the script, its arguments, 0
# open_tree(AT_FDCWD, python, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
mov eax, 428
push -100
pop rdi
mov rsi, rbx
mov edx, 0x80001
syscall
test eax, eax
js plain
mov r12d, eax
# mount_setattr(tree, "", AT_EMPTY_PATH, {MOUNT_ATTR_RDONLY, 0, 0, 0}, 32)
push 0
push 0
push 0
push 1
mov edi, r12d
mov rsi, r15
mov edx, 0x1000
mov r10, rsp
push 32
pop r8
mov eax, 442
syscall
test eax, eax
js plain
# execveat(tree, "", arguments, environment, AT_EMPTY_PATH)
mov edi, r12d
mov rsi, r15
mov rdx, rbp
mov r10, r13
mov r8d, 0x1000
mov eax, 322
syscall
plain:
# execve(python, arguments, environment)
mov rdi, rbx
mov rsi, rbp
mov rdx, r13
push 59
pop rax
syscall
# write(2, complaint, its length)
mov rdi, r14
xor eax, eax
push -1
pop rcx
repne scasb
mov rsi, rdi
push -1
pop rcx
repne scasb
lea rdx, [rdi - 1]
sub rdx, rsi
push 2
pop rdi
push 1
pop rax
syscall
# exit(127)
push 60
pop rax
push 127
pop rdi
syscall
python:
