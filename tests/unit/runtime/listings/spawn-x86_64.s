.intel_syntax noprefix
push rbx
push r12
mov rbx, rdx
mov r12, rcx
mov eax, 435
syscall
test rax, rax
jnz parent
loop:
mov rax,[rbx]
mov rdi,[rbx+8]
mov rsi,[rbx+16]
mov rdx,[rbx+24]
mov r10,[rbx+32]
mov r8,[rbx+40]
mov r9,[rbx+48]
syscall
mov [rbx+64], rax
cmp rax, -4095
jae failed
test byte ptr [rbx+56], 2
jz next
mov [rbx+80], rax
next:
add rbx, 72
jmp loop
failed:
test byte ptr [rbx+56], 1
jnz next
mov [r12], rbx
mov edi, 127
mov eax, 231
syscall
parent:
pop r12
pop rbx
ret
